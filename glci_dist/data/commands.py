"""`glci shards`: build, index, verify, show."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from glci_dist.data.index import Index, load_index
from glci_dist.data.location import check_location, is_remote, local_path
from glci_dist.data.names import READ_IN_WORDS, counted
from glci_dist.data.plan import BuildOptions
from glci_dist.data.processes import available_processes
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

_EXAMPLE = """\
example:
  glci shards build faces.zip shards/train --include 'train/*' --size 256
  glci shards verify shards/train
  glci shards show shards/train --out sheet.png
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `shards` with its subcommands; each sets ``run``, a function of the arguments that returns 0."""
    shards = _add(subparsers, "shards", "make, check and look at shards of photos", _EXAMPLE)
    commands = shards.add_subparsers(dest="shards_command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_index(commands)
    _add_verify(commands)
    _add_show(commands)


def add_demo_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo-corpus`."""
    demo = _add(
        subparsers,
        "demo-corpus",
        "render faces into shards, to try things without photos",
        "Renders different faces by the package itself (no photo is used) and builds shards of them:\n"
        "DEST/train and DEST/val.\n\nexample:\n  glci demo-corpus shards/demo\n",
    )
    demo.add_argument("dest", metavar="DEST", help="folder for the two folders of shards")
    demo.add_argument("--train", type=int, default=2000, metavar="N", help="faces to train on (%(default)s)")
    demo.add_argument("--val", type=int, default=200, metavar="N", help="faces held out (%(default)s)")
    demo.add_argument("--size", type=int, default=80, metavar="PX", help="side of a face, px (%(default)s)")
    demo.add_argument("--processes", type=int, default=None, metavar="P", help="processes (all cores)")
    demo.set_defaults(run=_demo_corpus)


def _demo_corpus(parsed: argparse.Namespace) -> int:
    from glci_dist.data.demo_corpus import build_demo_corpus

    processes = available_processes() if parsed.processes is None else parsed.processes
    build_demo_corpus(Path(parsed.dest), train=parsed.train, val=parsed.val, size=parsed.size, processes=processes)
    print(f"{parsed.dest}/train: {parsed.train} rendered faces; {parsed.dest}/val: {parsed.val} others")
    return 0


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = BuildOptions()
    build = _add(
        commands,
        "build",
        "write photos into shards",
        "JPEGs are copied byte for byte after a check. Other photos (png, webp, bmp, tiff, avif, jp2, ppm, gif; the\n"
        "first picture of an animation), photos that EXIF rotates, and those larger than --size are re-encoded.\n"
        "Photos that cannot be read or decoded are left out and listed in DEST/rejects.jsonl. Hidden and machine-made\n"
        "files and folders (@eaDir, .thumbnails, recycle bins) are left out and counted. The same command completes\n"
        "a build that was stopped.\n\n"
        "example:\n  glci shards build ~/photos shards/train --size 256 --samples 1000\n",
    )
    build.add_argument("source", metavar="SOURCE", help="folder (with subfolders), .zip or .tar of photos")
    build.add_argument("dest", metavar="DEST", help="folder for the shards")
    build.add_argument(
        "--include", default=defaults.include, metavar="GLOB", help="only photos whose names match; '*' matches '/' too"
    )
    build.add_argument("--size", type=int, metavar="PX", help="scale photos with longer short edges down to PX")
    quality = "JPEG quality of re-encoded photos (%(default)s)"
    build.add_argument("--quality", type=int, default=defaults.quality, metavar="Q", help=quality)
    build.add_argument(
        "--samples", type=int, default=defaults.samples, metavar="N", help="photos per shard (%(default)s)"
    )
    build.add_argument("--seed", type=int, default=defaults.seed, metavar="S", help="seed of the shuffle (%(default)s)")
    build.add_argument(
        "--no-shuffle", dest="shuffle", action="store_false", help="keep the photos in the order of their names"
    )
    _add_processes(build)
    build.set_defaults(run=_build)


def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    index = _add(
        commands,
        "index",
        "make the index of shards that another program wrote",
        f"Reads every .tar of FOLDER (WebDataset samples with a {READ_IN_WORDS} each) and\n"
        "writes a table of its samples beside it, then index.json. A sample's key ends at the first dot of its\n"
        "files' names. Images that are not a sample's photo are listed in FOLDER/index-rejects.jsonl.\n\n"
        "example:\n  glci shards index /data/faces-webdataset\n",
    )
    index.add_argument("folder", metavar="FOLDER", help="folder of .tar files")
    index.add_argument(
        "--image", metavar="EXT", help="extension of each sample's photo, such as png or face.jpg (jpg, else the next)"
    )
    _add_processes(index)
    index.set_defaults(run=_index)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = _add(
        commands,
        "verify",
        "find changed, cut, missing or extra shards, and photos that cannot be decoded",
        "Compares every shard with the SHA-256 in the index and decodes every photo as training does; prints a line\n"
        "for each fault, and exits with 2 if there is any.\n\n"
        "example:\n  glci shards verify shards/train --quick\n",
    )
    verify.add_argument("folder", metavar="FOLDER", help="folder of shards")
    verify.add_argument("--quick", action="store_true", help="compare sizes and sample tables only, decode no photo")
    _add_processes(verify)
    verify.set_defaults(run=_verify)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = _add(
        commands,
        "show",
        "draw a contact sheet of the photos",
        "example:\n  glci shards show shards/train --out sheet.png --photos 100 --seed 7\n",
    )
    show.add_argument("folder", metavar="FOLDER", help="folder or url (http, https, s3) of shards")
    show.add_argument("--out", default="sheet.png", metavar="PNG", help="the picture (%(default)s)")
    show.add_argument("--photos", type=int, default=64, metavar="N", help="how many (%(default)s)")
    show.add_argument("--seed", type=int, default=0, metavar="S", help="which ones (%(default)s)")
    show.set_defaults(run=_show)


def _build(args: argparse.Namespace) -> int:
    from glci_dist.data.build import build_shards
    from glci_dist.data.plan import REJECTS_NAME

    options = BuildOptions(**{option.name: getattr(args, option.name) for option in dataclasses.fields(BuildOptions)})
    folder = _local(args.dest)
    built = build_shards(_local(args.source), folder, options, processes=_processes(args))
    state = "already complete, nothing to do: " if built.already else ""
    print(f"{state}{_amount(built.index)}: {folder}")
    print(f"found {counted(built.photos, 'photo')}: {built.index.total:,} built, {built.rejected:,} rejected")
    for line in built.messages:
        print(line)
    if built.rejected:
        rejects = folder / REJECTS_NAME
        print(f"{counted(built.rejected, 'photo')} could not be decoded or read and left out, by name: {rejects}")
    return 0


def _index(args: argparse.Namespace) -> int:
    from glci_dist.data.scan import INDEX_REJECTS_NAME, index_folder

    folder = _local(args.folder)
    indexed = index_folder(folder, processes=_processes(args), image=args.image)
    index = indexed.index
    print(f"{counted(index.total, 'photo')} in {counted(len(index.shards), 'shard')}: {index.root}/index.json")
    found = counted(index.total + indexed.rejects, "image")
    print(f"found {found}: {index.total:,} indexed, {indexed.rejects:,} left out")
    for line in indexed.messages:
        print(line)
    if indexed.rejects:
        print(f"{counted(indexed.rejects, 'image')} left out, by name: {folder / INDEX_REJECTS_NAME}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from glci_dist.data.verify import verify_shards

    index = load_index(str(_local(args.folder)))
    faults = verify_shards(index, quick=args.quick, threads=_processes(args))
    for fault in faults:
        print(f"{fault.name} {fault.reason}")
    ways_out = {
        "file": "not as its index says, the first {}; copy or build the shards again",
        "extra": "extra, the first {}, which training does not read: do as each one's line says",
        "photo": "cannot be decoded, the first {}; training puts others in their place, evaluation refuses them: make "
        "the shards anew without them",
    }
    problems = []
    for kind, words in ways_out.items():
        names = [fault.name for fault in faults if fault.kind == kind]
        if names:
            many = counted(len(names), "photo" if kind == "photo" else "file")
            problems.append(f"{many} of {index.root} {words.format(names[0])}")
    if problems:
        raise UserError("; ".join(problems))
    checked = "sizes and sample tables as the index says"
    if not args.quick:
        checked = "checksums as the index says, every photo can be decoded"
    print(f"{counted(len(index.shards), 'shard')}, {counted(index.total, 'photo')}: {checked}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from glci_dist.data.sheet import check_sheet, draw_sheet

    out = Path(args.out)
    # Before the index, which a server may be asked for.
    check_sheet(out, photos=args.photos)
    index = load_index(args.folder)
    sheet = draw_sheet(index, out, photos=args.photos, seed=args.seed)
    print(_amount(index))
    print(
        f"{counted(sheet.photos, 'photo')} drawn: edges {sheet.shortest} to {sheet.longest} px, "
        f"{sheet.mean_bytes:,} bytes on average" + (f", {len(sheet.refused)} not decodable" if sheet.refused else "")
    )
    for name, reason in sheet.refused:
        print(f"{name} cannot be decoded: {reason}")
    print(f"picture: {args.out}")
    return 0


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, more: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=more)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, metavar="P", help="number of processes (all cores)")


def _processes(args: argparse.Namespace) -> int:
    processes = available_processes() if args.processes is None else int(args.processes)
    if processes < 1:
        raise UserError(f"--processes {processes}: at least 1 does the work")
    return processes


def _amount(index: Index) -> str:
    size = sum(shard.bytes for shard in index.shards)
    return f"{counted(index.total, 'photo')} in {counted(len(index.shards), 'shard')}, {size / 1e6:,.1f} MB"


def _local(location: str) -> Path:
    check_location(location)
    if is_remote(location):
        raise UserError(f"{without_secrets(location)} is remote; give a local path here, and copy from or to there")
    return Path(local_path(location)).expanduser()
