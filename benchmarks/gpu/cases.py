"""What is measured, in this order, and the rows that show it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.gpu.drift import drift
from benchmarks.gpu.images import block, decoding, encoding, fid, inception, official_encoding, official_sampling
from benchmarks.gpu.images import sampling as sampled
from benchmarks.gpu.made import Here, Shape
from benchmarks.gpu.table import Goal, Line
from benchmarks.gpu.training import Figures, checkpoint, memory, official_step, step

SHAPES = {
    "B": Shape("llamagen_b"),
    "XL": Shape("llamagen_xl"),
    "d16": Shape("var_d16"),
    "d24": Shape("var_d24"),
    "RAR-B": Shape("rar_b"),
    "RAR-XL": Shape("rar_xl"),
}
OFFICIAL = {name: shape for name, shape in SHAPES.items() if shape.family != "rar"}  # whose official code is compared
WHOLE = SHAPES | {"L": Shape("llamagen_l"), "d20": Shape("var_d20"), "t2i-XL": Shape("llamagen_t2i_xl")}
SHALLOW = {  # what one card may be too small for, with some of its layers
    "XXL, 8 layers": Shape("llamagen_xxl").shallow(8),
    "3B, 4 layers": Shape("llamagen_3b").shallow(4),
    "d30, 6 layers": Shape("var_d30").shallow(6),
}
LARGE = ("XL", "d16", "d24", "RAR-XL")  # above 300 M parameters
GUIDANCE = 2.0
RECOMPUTED, COMPILED = "placement.activation_checkpointing=true", "placement.compile=true"


@dataclass(frozen=True)
class Case:
    """Something to measure once; its name is that in the file."""

    name: str
    run: Callable[[Here], Figures]


def cases(peer: bool) -> list[Case]:
    """In the order of what is wanted most; with the official code where there is some."""
    found = [Case(f"step {name}", partial(step, shape)) for name, shape in SHAPES.items()]
    found += [
        Case(f"sampling {name} {kind}", partial(sampled, shape, scale=scale, graphs=graphs))
        for name, shape in SHAPES.items()
        for kind, scale, graphs in (("free", 1.0, True), ("guided", GUIDANCE, True), ("free, eager", 1.0, False))
    ]
    vq, vae = SHAPES["B"], SHAPES["d16"]
    found += [Case("encoding LlamaGen", partial(encoding, vq)), Case("encoding VAR", partial(encoding, vae))]
    if peer:
        found += [Case(f"step {name} official", partial(official_step, shape)) for name, shape in OFFICIAL.items()]
        found += [Case(f"sampling {name} official", partial(official_sampling, s)) for name, s in OFFICIAL.items()]
        found += [Case("encoding LlamaGen official", partial(official_encoding, vq))]
    found += [Case(f"memory {name}", partial(memory, shape)) for name, shape in {**WHOLE, **SHALLOW}.items()]
    found += [Case("decoding LlamaGen", partial(decoding, vq)), Case("decoding VAR", partial(decoding, vae))]
    found += [Case("Inception", partial(inception, vq)), Case("FID", fid)]
    found += [Case("block B", partial(block, SHAPES["B"])), Case("block d16", partial(block, SHAPES["d16"]))]
    found += [Case("checkpoint XL", partial(checkpoint, SHAPES["XL"]))]
    found += [Case(f"drift {space}", partial(drift, space)) for space in ("digits_m", "digits_var")]
    found += [Case("step B compiled", changed(step, SHAPES["B"], COMPILED))]
    found += [Case("step B recomputed", changed(step, SHAPES["B"], RECOMPUTED))]
    if peer:  # last: the compiler may take minutes
        compiled = partial(official_step, compiled=True)
        found += [Case(f"step {name} official, compiled", partial(compiled, SHAPES[name])) for name in ("B", "XL")]
    return found


def changed(run: Callable[..., Figures], shape: Shape, *settings: str) -> Callable[[Here], Figures]:
    """Dry, nothing is compiled: that takes a minute, and tests/models/test_parallel.py does it."""
    return lambda here: run(shape, here, *(word for word in settings if word != COMPILED or not here.dry))


def lines(peer: bool, h100: bool) -> list[Line]:
    """MFU has a goal on an H100."""
    of_peer = "official" if peer else "official (want --peer)"
    found = [line for name in SHAPES for line in (*step_lines(name, of_peer, h100), *sampling_lines(name, of_peer))]
    rate = "images/s"
    found += [
        Line("step B, compiled, images/s", ("step B compiled", rate), ("step B", rate), "eager"),
        Line("step B, recomputed, GiB at most", ("step B recomputed", "GiB"), ("step B", "GiB"), "kept"),
    ]
    found += [
        Line(f"CCA step {name}, images/s", (f"step {name}", rate), (f"step {name} official, compiled", rate),
             f"{of_peer}, compiled")
        for name in ("B", "XL")
    ]  # fmt: skip
    found += [
        Line("encoding LlamaGen, images/s of ten crops", ("encoding LlamaGen", rate),
             ("encoding LlamaGen official", rate), of_peer, Goal(least=5)),
        Line("encoding VAR, images/s of ten crops", ("encoding VAR", rate)),
        Line("decoding LlamaGen, images/s", ("decoding LlamaGen", rate)),
        Line("decoding VAR, images/s", ("decoding VAR", rate)),
        Line("Inception, images/s", ("Inception", rate)),
        Line("FID of 2,048 features by sqrtm, s", ("FID", "s by sqrtm"), ("FID", "s"), "ours", Goal(least=10)),
    ]  # fmt: skip
    return found + memory_lines() + scoring_lines()


def step_lines(name: str, of_peer: str, h100: bool) -> list[Line]:
    own, found = f"step {name}", list[Line]()
    for figure, what, goal in (("images/s", "images/s", Goal(least=1.8)), ("GiB", "GiB at most", Goal(most=0.65))):
        line = Line(f"CCA {own}, {what}", (own, figure))
        compared = replace(line, beside=(f"{own} official", figure), said=of_peer, goal=goal)
        found.append(compared if name in OFFICIAL else line)
    of_peak = Goal(least=0.4) if h100 and name in LARGE else None
    return [*found, Line(f"CCA {own}, share of the peak", (own, "MFU"), goal=of_peak)]


def sampling_lines(name: str, of_peer: str) -> list[Line]:
    own = f"sampling {name}"
    besides = [(f"{own} guided", "guided", Goal(least=1.9)), (f"{own} free, eager", "without graphs", None)]
    if name in OFFICIAL:
        besides.insert(1, (f"{own} official", of_peer, Goal(least=3 if OFFICIAL[name].family == "llamagen" else 1.9)))
    return [
        Line(f"{own} without guidance, images/s", (f"{own} free", "images/s"), (beside, "images/s"), said, goal)
        for beside, said, goal in besides
    ]


def memory_lines() -> list[Line]:
    """Whichever is more, of steps and of scoring, is what `memory_gib` speaks of: within 10 %."""
    bounds = Goal(least=0.9, most=1.0)
    return [
        Line(f"memory {name}, GiB at most in {part}", (f"memory {name}", f"{part} GiB"),
             (f"memory {name}", "said GiB"), "memory_gib", bounds if part == "all" else Goal(most=1.0))
        for name in {**WHOLE, **SHALLOW}
        for part in ("training", "scoring", "all")
    ]  # fmt: skip


def scoring_lines() -> list[Line]:
    found = [Line(f"50,000 images of {name} scored, h", (f"block {name}", "h a block")) for name in ("B", "d16")]
    found += [Line(f"checkpoint XL, {figure}", ("checkpoint XL", figure)) for figure in ("s to save", "s to resume")]
    for space in ("digits_m", "digits_var"):
        case = f"drift {space}"
        for pair in ("card - CPU", "bf16 - card"):
            found += [Line(f"{space}, share of equal images, {pair}", (case, f"equal, {pair}"))]
            found += [Line(f"{space}, FID, {pair}", (case, f"FID, {pair}"))]
            found += [Line(f"{space}, FID, {pair}, std over seeds", (case, f"std, {pair}"),
                           (case, "std of FID over seeds"), "of the FID itself")]  # fmt: skip
    return found


def named(every: Sequence[Case], some: Sequence[str]) -> list[Case]:
    """Those whose names begin so; all, if nothing is said."""
    return [case for case in every if not some or any(case.name.startswith(start) for start in some)]
