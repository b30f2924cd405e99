"""`python -m trainer prepare PHOTOS --out DATA`: images, passes, shards, card; whatever is there is not made again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import EXIT_DATA, EXIT_DONE, EXIT_STOPPED, UsageError
from trainer.prepare.card import write_card
from trainer.prepare.ingest import image_recipe, ingest
from trainer.prepare.lock import only_here, sweep
from trainer.prepare.manifest import Manifest, Part, whole_manifest
from trainer.prepare.options import DINOV3, T5, CaptionServer, Options
from trainer.prepare.pack import pack
from trainer.prepare.passes import Pass
from trainer.prepare.recipes import note_recipes
from trainer.prepare.records import Samples
from trainer.prepare.run import Outcome, run_pass
from trainer.prepare.sizes import check_side
from trainer.prepare.table import OPTIONAL, PASSES, chosen_passes

PACK = "pack"
_SERVER = CaptionServer("", "")  # its defaults


def main(argv: Sequence[str]) -> int:
    """Prepare a set. 0: everything is there; 65: something could not be made, what was is kept."""
    try:
        return _prepared(argv)
    except KeyboardInterrupt:
        print("stopped; what is made is kept, the same command goes on from there", file=sys.stderr)
        return EXIT_STOPPED


def _prepared(argv: Sequence[str]) -> int:
    given = _parser().parse_args(argv)
    part, names = _part(given.shard), _names(given.passes)
    check_side(given.side)
    options = _options(given)
    passes = chosen_passes(None if names is None else [name for name in names if name != PACK], options)
    for work in passes:
        work.recipe  # noqa: B018 - a model that is not there is known before anything is written
    _refuse_bad_folders(given.photos, given.out)
    with only_here(given.out, part):
        return _prepare(given, options, part, passes, names is None or PACK in names)


def _prepare(given: argparse.Namespace, options: Options, part: Part, passes: Sequence[Pass], packs: bool) -> int:
    data = given.out
    samples = Samples(data)
    if part.of == 1:
        sweep(data)
    manifest = ingest(given.photos, data, part, options.side, given.max_rejected_share)
    note_recipes(data, {"image": image_recipe(options.side), **{work.artefact: work.recipe for work in passes}})
    outcomes = [_run(work, samples, manifest) for work in passes]
    if packs and part.of == 1:
        print(pack(data, whole_manifest(data), options.seed).summary)
        print(f"card: {write_card(data)}")
    elif packs:
        print(f"part {part.number} of {part.of} is done; when all are, pack them: --passes {PACK}")
    needs = {work.artefact: work.needs for work in passes}
    return _told(outcomes, needs, manifest, given.max_rejected_share)


def _run(work: Pass, samples: Samples, manifest: Manifest) -> Outcome:
    outcome = run_pass(work, samples, manifest)
    print(f"{work.artefact}: {outcome.made:,} made, {outcome.done:,} were there", end="")
    print(f", {len(outcome.failed):,} failed" if outcome.failed else "", end="")
    print(f", {outcome.undetected:,} show nobody" if outcome.undetected else "", end="")
    print(f", {len(outcome.waiting):,} wait for {' and '.join(work.needs)}" if outcome.waiting else "", flush=True)
    return outcome


def _told(
    outcomes: Sequence[Outcome], needs: Mapping[str, Sequence[str]], manifest: Manifest, allowed_share: float
) -> int:
    """Name what failed; too much of it is an error. `needs` says which artefacts each one is made from."""
    paths = {entry.id: entry.path for entry in manifest.images}
    code = EXIT_DONE
    for outcome in outcomes:
        for id, reason in outcome.failed:
            print(f"{outcome.artefact} failed: {paths[id]} ({id}): {reason}", file=sys.stderr)
        lacking = len(outcome.failed) + len(outcome.waiting)
        if lacking > allowed_share * max(1, outcome.total):
            print(
                f"trainer prepare: {outcome.artefact} is missing for {lacking} of {outcome.total} images, more than "
                f"--max-rejected-share {allowed_share:g} allows; {_what_to_do(outcome, needs[outcome.artefact])}",
                file=sys.stderr,
            )
            code = EXIT_DATA
    return code


def _what_to_do(outcome: Outcome, needs: Sequence[str]) -> str:
    again = "give the same command again to try them once more"
    if not outcome.waiting:
        return again
    first = f"{len(outcome.waiting)} of them need {' and '.join(needs)} first: leave out --passes, or name it there"
    return f"{first}; {again}" if outcome.failed else first


def _refuse_bad_folders(photos: Path, out: Path) -> None:
    try:
        if not photos.is_dir():
            raise UsageError(f"{photos} is not a folder of photographs")
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is a file: name a folder")
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be looked at: {error.strerror}") from error
    if photos.resolve() == out.resolve() or photos.resolve() in out.resolve().parents:
        raise UsageError(f"--out {out} lies inside the photographs: what is made there would be taken for photographs")


def _part(text: str | None) -> Part:
    if text is None:
        return Part()
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: say N/M with 1 <= N <= M, such as 2/4")
    return Part(int(number), int(count))


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*PASSES, PACK)]
    if not names:
        raise UsageError(f"--passes {text!r} names no pass; allowed: {', '.join((*PASSES, PACK))}")
    if unknown:
        raise UsageError(f"--passes {text}: there is no {unknown[0]!r}; allowed: {', '.join((*PASSES, PACK))}")
    return names


def _options(given: argparse.Namespace) -> Options:
    if (given.caption_url is None) != (given.caption_model is None):
        raise UsageError("--caption-url and --caption-model belong together: give both, or none for .txt files")
    if given.encoders == "tiny" and (named := _named_models(given)):
        raise UsageError(f"--encoders tiny takes stand-ins for all models, so {', '.join(named)} would not be used")
    server = None
    if given.caption_url is not None:
        server = CaptionServer(
            given.caption_url,
            given.caption_model,
            timeout_s=given.caption_timeout_s,
            tries=given.caption_tries,
            requests=given.caption_requests,
            most_tokens=given.caption_tokens,
        )
    return Options(
        side=given.side,
        tiny=given.encoders == "tiny",
        device=given.device,
        batch=given.batch,
        seed=given.seed,
        t5=given.t5,
        dinov3=given.dinov3,
        detector=given.detector,
        pose_model=given.pose_model,
        seg_model=given.seg_model,
        captions=server,
    )


def _named_models(given: argparse.Namespace) -> list[str]:
    """The options that name a model, as they were given."""
    defaults = Options()
    fields = ("t5", "dinov3", "detector", "pose_model", "seg_model")
    return [f"--{name.replace('_', '-')}" for name in fields if getattr(given, name) != getattr(defaults, name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer prepare",
        description="Turn a folder of photographs into training shards. Whatever is there already is not made again.",
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photographs, at any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="DATA", help="folder of everything that is made")
    parser.add_argument(
        "--passes", metavar="LIST", help=f"some of {','.join((*PASSES, PACK))} (default: all; {OPTIONAL[0]} if named)"
    )
    parser.add_argument("--side", type=int, default=1024, metavar="PX", help="side of the square bucket (default 1024)")
    parser.add_argument("--encoders", choices=("real", "tiny"), default="real", help="tiny: small random stand-ins")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=_positive, metavar="N", help="most images that a model sees at once")
    parser.add_argument("--shard", metavar="N/M", help="work on every M-th photograph, from the N-th on")
    parser.add_argument("--seed", type=int, default=0, help="of the order in the shards, and of captions")
    parser.add_argument("--max-rejected-share", type=_share, default=0.05, metavar="S", help="(default 0.05)")
    parser.add_argument("--t5", default=T5, metavar="ID", help=f"text encoder: folder or hub id (default {T5})")
    parser.add_argument("--dinov3", default=DINOV3, metavar="ID", help=f"image encoder (default {DINOV3})")
    parser.add_argument("--detector", type=Path, metavar="ONNX", help="YOLOX person detector (default: DWPose's)")
    parser.add_argument("--pose-model", type=Path, metavar="ONNX", help="DWPose's 133 joints (default: DWPose's)")
    parser.add_argument("--seg-model", type=Path, metavar="ONNX", help="part maps of 28 classes (default: none)")
    captions = parser.add_argument_group("captions (default: a .txt file beside each photograph)")
    captions.add_argument("--caption-url", metavar="URL", help="a vision model behind Ollama or an OpenAI-like server")
    captions.add_argument("--caption-model", metavar="NAME", help="its name there")
    captions.add_argument("--caption-timeout-s", type=float, default=_SERVER.timeout_s, metavar="S")
    captions.add_argument("--caption-tries", type=_positive, default=_SERVER.tries, metavar="N")
    captions.add_argument("--caption-requests", type=_positive, default=_SERVER.requests, metavar="N")
    captions.add_argument("--caption-tokens", type=_positive, default=_SERVER.most_tokens, metavar="N")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no share in [0, 1], such as 0.05")
    return number
