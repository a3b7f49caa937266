"""Scans stay on a GPU only where that is proven at load; where it is not, the record says why."""

import numpy as np
import pytest
from brainseg_runtime import segmenter as chapter
from brainseg_runtime.engines.choice import Choice
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.kernels import proof
from brainseg_runtime.kernels.proof import Fetching, prove
from brainseg_runtime.resident import Resident
from brainseg_runtime.segmenter import load
from toys import toy_bundle, toy_volume

from .machines import Cpu

AMPLE = 10**12
GPU = Gpu(0, "none", (9, 0), AMPLE, "none")


@pytest.fixture
def bundle(tmp_path):
    return toy_bundle(tmp_path / "toy")


class Wrong(Cpu):
    """Leaves one kernel out, or lets it run on all threads but the last."""

    def __init__(self, library, name, left_out):
        super().__init__(library)
        self.name, self.left_out = name, left_out

    def run(self, name, arguments, threads):
        self.run_exactly(name, arguments, self.left_out(threads) if name == self.name else threads)


def test_a_card_that_is_right_is_proven(card, bundle):
    """On any machine that runs the kernels, with an engine that meets its known answer there."""
    resident, golden = Resident(OrtEngineOn(card, bundle), card), bundle.golden()
    prove(resident, golden)
    answer = Fetching(resident, golden.logits.shape[-1]).infer(golden.tile[None])[0]
    np.testing.assert_allclose(answer, golden.logits, atol=1e-2)


class OrtEngineOn:
    """The toy network by ONNX Runtime on the CPU, for tiles on any card."""

    def __init__(self, card, bundle, factor=1):
        self.card, self.factor = card, factor
        self.engine = OrtEngine(bundle.graph("fp32"), bundle.spec, "fp32")
        self.identity, self.infer, self.close = self.engine.identity, self.engine.infer, self.engine.close

    def infer_at(self, tiles, logits, shape):
        found = np.moveaxis(self.card.get(tiles, shape, np.float32), 1, -1)
        self.card.write(logits, self.factor * np.moveaxis(self.infer(found), -1, 1))


@pytest.mark.parametrize(
    ("name", "left_out"),
    [(name, "all") for name in ("foreground", "gather", "check", "blend", "decide", "count")]
    # For the others it is background, and 0 is right.
    + [(name, "last value") for name in ("gather", "check", "blend")],
)
def test_a_card_that_is_wrong_is_found_out(library, bundle, name, left_out):
    """A kernel that does nothing, or leaves out one value that matters, is no match for numpy."""
    card = Wrong(library, name, {"all": lambda n: 0, "last value": lambda n: n - 1}[left_out])
    with pytest.raises(EngineUnavailable, match="E_ENGINE_FAILED"):
        prove(Resident(OrtEngineOn(card, bundle), card), bundle.golden())


def test_an_engine_that_computes_otherwise_in_the_cards_memory_is_found_out(card, bundle):
    """Its answers by value were certified, those by address are held against the known answer as well."""
    with pytest.raises(BundleInvalid, match="E_SELFTEST"):
        prove(Resident(OrtEngineOn(card, bundle, 1.1), card), bundle.golden())


@pytest.fixture
def on_a_gpu(monkeypatch, bundle, library):
    """``load`` as on a GPU, which is a card on the CPU; the cards that were opened."""
    cards = []

    def opened(gpu):
        cards.append(Cpu(library))
        return cards[-1]

    pytest.importorskip("cuda.bindings.driver", reason="the extra rtx is not installed (CI installs it)")
    monkeypatch.setattr("brainseg_runtime.kernels.cuda_card.CudaCard", opened)
    monkeypatch.setattr(chapter, "find", lambda device: GPU)
    monkeypatch.setattr(chapter, "free_memory", lambda gpu: AMPLE)
    monkeypatch.setattr(chapter, "choose", lambda *_: Choice("ort", "fp32", "as asked for"))
    monkeypatch.setattr(
        chapter, "open_engine", lambda b, *_, **__: OrtEngine(b.graph("fp32"), b.spec, "fp32")
    )
    return cards


def test_a_load_that_fails_at_its_last_step_gives_back_engine_and_card(on_a_gpu, bundle, monkeypatch):
    """Also where the driver does not tell its free memory."""
    closed = []

    class Closing(OrtEngine):
        def close(self):
            closed.append(self)
            super().close()

    def silent(gpu):
        (card,) = on_a_gpu
        card.zeros(100)
        raise EngineUnavailable("E_ENGINE_DEVICE", "no answer.", "Check it.")

    monkeypatch.setattr(chapter, "open_engine", lambda b, *_, **__: Closing(b.graph("fp32"), b.spec, "fp32"))
    monkeypatch.setattr(chapter, "free_memory", silent)
    with pytest.raises(EngineUnavailable, match="no answer"):
        load(bundle.folder, "ort", device="cuda:0")
    assert [card.held for card in on_a_gpu] == [0]
    assert len(closed) == 1


def test_on_a_gpu_scans_stay_there_by_default(on_a_gpu, bundle):
    """After a proof at load; the results are those of the host, and the memory is given back on close."""
    volume = toy_volume()
    with load(bundle.folder, "ort", device="cpu") as segmenter:
        expected = segmenter.segment(volume)
    assert on_a_gpu == []
    with load(bundle.folder, "ort", device="cuda:0") as segmenter:
        (card,) = on_a_gpu
        assert card.held == 0 < card.most
        found = segmenter.segment(volume)
        assert card.held > 0
    assert card.held == 0
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.record["plan"]["on_gpu"] == "scan, labels come back"
    assert found.record["engine_choice"] == "as asked for; shown to be right here by the self-test"
    with load(bundle.folder, "ort", device="cuda:0", tta=True) as segmenter:
        assert segmenter.segment(volume).record["plan"]["on_gpu"] == "tiles"


@pytest.mark.parametrize("failure", ["proof", "ptx", "package"])
def test_without_a_proof_only_tiles_go_to_the_gpu_and_the_record_says_why(
    on_a_gpu, bundle, monkeypatch, failure
):
    """Kernels that compute otherwise, PTX that the driver does not take, bindings that are not there."""
    if failure == "proof":
        monkeypatch.setattr(Cpu, "run", lambda self, name, arguments, threads: None)
    elif failure == "ptx":

        def refuses(gpu):
            raise EngineUnavailable("E_ENGINE_FAILED", "CUDA says CUDA_ERROR_INVALID_PTX (218).", "Check.")

        monkeypatch.setattr("brainseg_runtime.kernels.cuda_card.CudaCard", refuses)
    else:
        monkeypatch.setattr(proof, "there", lambda module: False)
    with load(bundle.folder, "ort", device="cuda:0") as segmenter:
        record = segmenter.segment(toy_volume()).record
    assert record["plan"]["on_gpu"] == "tiles"
    reason = {
        "proof": "not those of numpy",
        "ptx": "INVALID_PTX",
        "package": "cuda-bindings is not installed",
    }
    assert (
        f"its scans do not stay on the GPU: {'' if failure == 'package' else 'E_ENGINE_FAILED'}"
        in (record["engine_choice"])
    )
    assert reason[failure] in record["engine_choice"]
    assert all(card.held == 0 for card in on_a_gpu)


def test_without_a_driver_a_card_is_refused_with_cudas_own_word():
    """No crash: every return code is read."""
    pytest.importorskip("cuda.bindings.driver", reason="the extra rtx is not installed (CI installs it)")
    from brainseg_runtime.gpu import NoDriver, gpus
    from brainseg_runtime.kernels.cuda_card import CudaCard

    try:
        gpus()
    except NoDriver:
        with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*cudaErrorInsufficientDriver"):
            CudaCard(GPU)
    else:
        pytest.skip("this machine has a GPU")
