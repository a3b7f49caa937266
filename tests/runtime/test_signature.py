"""Who vouches for a bundle is said by the operator's keys, never by the bundle."""

import shutil
import subprocess
import sys
from base64 import b64decode

import pytest
from brainseg_runtime.bundle import MANIFEST, SIGNATURE, Bundle, sign_bundle
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, OutputUnwritable, UsageRefused
from brainseg_runtime.segmenter import load
from brainseg_runtime.signature import make_keys
from toys import toy_bundle, toy_spec

pytest.importorskip("cryptography", reason="the extra trust is not installed (CI installs it)")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with two pairs of keys: ours and theirs."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_keys(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    return folder


@pytest.fixture
def signed(tmp_path, keys):
    """A bundle with our signature."""
    folder = toy_bundle(tmp_path / "toy").folder
    sign_bundle(folder, keys / "ours.pem")
    return folder


def code_of(folder, key):
    with pytest.raises(BundleInvalid) as refused:
        Bundle.open(folder, key)
    return refused.value.code


def test_a_signed_bundle_opens_with_its_key_and_without(signed, keys):
    """One of several keys will do; who asks for none gets the bundle as before, under the same digest."""
    plain = Bundle.open(signed)
    assert Bundle.open(signed, keys / "ours.pub.pem").sha256 == plain.sha256
    both = keys / "both.pem"
    both.write_bytes((keys / "theirs.pub.pem").read_bytes() + (keys / "ours.pub.pem").read_bytes())
    load(signed, require_signature=both).close()


def test_unsigned_and_wrongly_signed_bundles_are_refused(signed, keys, tmp_path):
    """No signature, another's, another manifest's, a cut one, text, and any flipped bit of it."""
    assert code_of(signed, keys / "theirs.pub.pem") == "E_SIGNATURE"
    good = (signed / SIGNATURE).read_bytes()
    other = toy_bundle(tmp_path / "other", toy_spec(name="other")).folder
    sign_bundle(other, keys / "ours.pem")
    wrong = [(other / SIGNATURE).read_bytes(), b"", b"text", good[:40], good + good, b"\xff" * 88]
    raw = bytearray(good)
    for at in range(len(raw) - 1):
        raw[at] ^= 1
        wrong.append(bytes(raw))
        raw[at] ^= 1
    # A flip of the last digit may only touch the bits that base64 does not use.
    decoded = b64decode(good)
    for signature in wrong:
        (signed / SIGNATURE).write_bytes(signature)
        try:
            same = b64decode(signature.strip(), validate=True) == decoded
        except ValueError:
            same = False
        assert same or code_of(signed, keys / "ours.pub.pem") == "E_SIGNATURE"
    (signed / SIGNATURE).unlink()
    assert code_of(signed, keys / "ours.pub.pem") == "E_SIGNATURE"


def test_whoever_makes_a_bundle_whole_again_cannot_sign_it(signed, keys, tmp_path):
    """A changed bundle with right digests, and a signature by a key that it brings along, is refused."""
    forged = toy_bundle(tmp_path / "forged", **{"MODEL_CARD.md": b"# better\n"}).folder
    shutil.copy(signed / SIGNATURE, forged / SIGNATURE)
    Bundle.open(forged)
    assert code_of(forged, keys / "ours.pub.pem") == "E_SIGNATURE"
    sign_bundle(forged, keys / "theirs.pem")
    shutil.copy(keys / "theirs.pub.pem", forged / "ours.pub.pem")
    assert code_of(forged, keys / "ours.pub.pem") == "E_SIGNATURE"


def test_a_link_is_no_signature(signed, keys):
    """Neither a link nor a folder by the signature's name is followed."""
    (signed / SIGNATURE).rename(signed.parent / "sig")
    (signed / SIGNATURE).symlink_to(signed.parent / "sig")
    assert code_of(signed, keys / "ours.pub.pem") == "E_BUNDLE_DAMAGED"


def test_no_bit_of_a_signature_is_idle(signed, keys):
    """Base64 has bits that decoding ignores; flipping those is refused like any other."""
    good = (signed / SIGNATURE).read_bytes()
    for n in range(8 * len(good)):
        bad = bytearray(good)
        bad[n // 8] ^= 1 << n % 8
        (signed / SIGNATURE).write_bytes(bad)
        with pytest.raises(BundleInvalid, match="E_SIGNATURE"):
            Bundle.open(signed, keys / "ours.pub.pem")


def test_openssl_agrees(signed, keys, tmp_path):
    """The signature is plain Ed25519 over the manifest as it lies on disk."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (tmp_path / "raw").write_bytes(b64decode((signed / SIGNATURE).read_bytes()))
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys / "ours.pub.pem"]
    command += ["-in", signed / MANIFEST, "-sigfile", tmp_path / "raw"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    command[6] = keys / "theirs.pub.pem"
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_only_whole_bundles_are_signed(signed, keys):
    """A damaged one is refused, so that no signature vouches for damage."""
    (signed / "LICENSE").write_text("changed")
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        sign_bundle(signed, keys / "ours.pem")


def test_a_key_is_never_replaced_and_a_private_one_is_for_its_owner(keys):
    """Neither half of a pair is written over; others cannot read the private one."""
    assert (keys / "ours.pem").stat().st_mode & 0o77 == 0
    with pytest.raises(OutputUnwritable, match="E_OUTPUT"):
        make_keys(keys / "ours.pem", keys / "new.pub.pem")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_the_users_mistake(signed, keys, tmp_path, content):
    """An empty file trusts nobody, and must not be taken for one that trusts everybody."""
    path = tmp_path / "keys.pem"
    path.write_bytes(content)
    with pytest.raises(UsageRefused, match="E_USAGE"):
        Bundle.open(signed, path)
    with pytest.raises(UsageRefused, match="E_USAGE"):
        Bundle.open(signed, keys / "ours.pem")
    with pytest.raises(UsageRefused, match="E_USAGE"):
        sign_bundle(signed, keys / "ours.pub.pem")


def test_a_demand_without_cryptography_is_refused_not_dropped(signed, keys, monkeypatch):
    """Status 5 and the line that installs it."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr("brainseg_runtime.extras.find_spec", lambda _: None)
    with pytest.raises(EngineUnavailable, match=r"E_EXTRA_MISSING.*brainseg-runtime\[trust\]"):
        Bundle.open(signed, keys / "ours.pub.pem")
