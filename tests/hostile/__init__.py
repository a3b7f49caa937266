"""What nobody should be able to do to brainseg: files made by hand, each with the code that refuses it."""
