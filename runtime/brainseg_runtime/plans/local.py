"""The plan of a graph for a GPU of this machine: from the cache, or built into it."""

from dataclasses import dataclass

from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.gpu import Gpu, NoDriver, gpus
from brainseg_runtime.plans import flavour as flavours
from brainseg_runtime.plans.api import TensorRT
from brainseg_runtime.plans.building import Built, build, inspected
from brainseg_runtime.plans.cache import Entry, PlanCache
from brainseg_runtime.plans.flavour import FLAVOURS, Flavour
from brainseg_runtime.plans.hearing import Progress
from brainseg_runtime.plans.inspection import require_precision
from brainseg_runtime.plans.request import Request, bound_to
from brainseg_runtime.spec import ModelSpec

__all__ = ["LocalPlan", "foreign", "lacking", "plan_for"]


@dataclass(frozen=True, eq=False)
class LocalPlan:
    """A plan for this machine, and the TensorRT that runs it."""

    plan: bytes
    request: Request
    flavour: Flavour
    trt: TensorRT


def plan_for(
    graph: bytes,
    spec: ModelSpec,
    precision: str,
    gpu: Gpu,
    *,
    cache: PlanCache | None = None,
    flavour: Flavour | None = None,
    progress: Progress | None = None,
) -> LocalPlan:
    """The plan of a graph on a GPU; it is built where the cache has none, which takes seconds to minutes.

    ``flavour`` is the best one that is installed unless another is given. A plan for the lean library is
    built by the full one of the same major version, or found where that is installed no more.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING``, ``E_PLAN``, ``E_PLAN_CACHE``.
        BundleInvalid: ``E_BUNDLE_DAMAGED`` for a graph that TensorRT cannot take.
        OutputUnwritable: ``E_OUTPUT``.
    """
    flavour = flavour or flavours.choose(gpu)
    cache = cache or PlanCache.open()
    full = FLAVOURS["tensorrt"]
    only_runs = not flavour.builds and flavours.installed(flavour) and not flavours.installed(full)
    builder = flavour if flavour.builds or only_runs else full
    trt = flavours.load(builder)
    request = Request.of(graph, spec, precision, gpu, flavour, trt.__version__)

    def make() -> Built:
        if not builder.builds:
            raise EngineUnavailable(
                "E_PLAN",
                f"{flavour.title} only runs plans, and none is kept for this graph on {gpu.name}.",
                "On this machine, in an environment with TensorRT itself: brainseg plans build BUNDLE --lean",
            )
        target = gpu.capability if flavour.name == "rtx" else None
        built = build(
            trt, graph, request.profiles, target=target, for_lean=not flavour.builds, progress=progress
        )
        kernels = built.kernels if all(built.kernels.values()) else inspected(trt, built)
        require_precision(kernels, precision)
        return built

    return LocalPlan(cache.obtain(request, make), request, flavour, trt)


def foreign(entry: Entry) -> str:
    """Why nothing on this machine can run a plan of the cache any more; empty where something may.

    What is installed does not count: environments with other versions of TensorRT share one cache.
    """
    if entry.problem:
        return entry.problem
    told = entry.built_for
    try:
        here = {(gpu.name, gpu.capability, gpu.driver) for gpu in gpus()}
    except NoDriver:  # which may come back
        return ""
    built = told["gpu"], tuple(told["capability"]), told["driver"]
    return "" if built in here else f"there is no {built[0]} under driver {built[2]}"


def lacking(entry: Entry) -> str:
    """What this environment lacks to run a plan of the cache; empty where it lacks nothing."""
    if entry.problem:
        return entry.problem
    told = entry.built_for
    flavour = FLAVOURS[told["flavour"]]
    wanted = f"{flavour.title} {told['version']}"
    if not flavours.installed(flavour):
        return f"{wanted} is not installed in this environment"
    try:
        version = bound_to(flavour, flavours.load(flavour).__version__)
    except EngineUnavailable as error:
        return error.received
    return "" if version == told["version"] else f"in this environment is {version}, not {wanted}"
