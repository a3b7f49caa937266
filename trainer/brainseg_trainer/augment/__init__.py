"""Making one tile look like another scan's: parameters are drawn first, then applied, nothing in between.

``light``: mirrors and a few intensities, in milliseconds. ``space`` and ``intensity``: nnU-Net's table
(Isensee et al. 2021), a bias field and absent modalities. ``enhancement``: the contrast agent left out.
"""
