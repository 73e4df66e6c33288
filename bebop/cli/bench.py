"""``bebop bench``: timings on this machine, as a table and as JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bebop.bench.decode import DecodeBench, DraftLength, bench_decode, task_prompts
from bebop.bench.learn import LearnBench, bench_learn, played_groups
from bebop.bench.loss import LossBench, bench_loss
from bebop.cli.bench_engines import compare_engines, engine_bench, engines_table
from bebop.cli.devices import chosen_device, chosen_dtype
from bebop.cli.output import checked_file
from bebop.cli.progress import progress
from bebop.core.objectives import OBJECTIVES
from bebop.engines.embedded.rules import rule_named
from bebop.errors import UserError
from bebop.files import atomic_write
from bebop.models.policy import load_policy

bench_app = typer.Typer(
    name="bench", help="Time decoding, learning and the head's loss on this machine.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, or with FILE write it there too.")]
FileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="Where --json writes.", show_default=False, callback=checked_file),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@bench_app.command()
def decode(
    file: FileArgument = None,
    policy: Annotated[str, typer.Option(help="Name or directory of a policy with a head.")] = "tiny",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,4,8,16",
    k: Annotated[
        str, typer.Option("--k", help="Draft lengths, with commas; auto is one. 0 must be there.")
    ] = "0,1,2,3,5",
    rule: Annotated[str, typer.Option(help="Verification rule.")] = "rejection",
    task: Annotated[str, typer.Option(help="Task whose held-out problems are the prompts.")] = "math",
    tokens: Annotated[int, typer.Option(help="Length of every completion: no more than yours have.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the sampling.")] = 1.0,
    repetitions: Annotated[int, typer.Option(help="Times that every arm runs; figures are medians.")] = 5,
    generate: Annotated[bool, typer.Option(help="Time transformers' generate, too.")] = True,
    lean: Annotated[bool, typer.Option(help="Use the engine's lean layers where there are any.")] = True,
    every_token: Annotated[bool, typer.Option("--every-token", help="Draft all tokens, not the head's own.")] = False,
    engine: Annotated[str, typer.Option(help="embedded, or embedded,vllm: the two side by side.")] = "embedded",
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time draft lengths against decoding without drafts, and that against transformers' generate.

    Arms take turns within each repetition, and ratios are taken within one. Run it on a machine that does nothing else.
    With --engine embedded,vllm the arms are the two engines, each with every draft length.

    Example: bebop bench decode --policy tiny --batch 1,4,8 --k 0,3,auto --json decode.json
    """
    bench = DecodeBench(
        batches=tuple(_number(word, "--batch") for word in batch.split(",")),
        draft_lengths=tuple(_draft_length(word) for word in k.split(",")),
        rule=rule,
        tokens=tokens,
        temperature=temperature,
        repetitions=repetitions,
        generate=generate,
        lean=lean,
        draft_vocabulary=not every_token,
    )
    rule_named(rule)
    use_threads(threads)
    if engine != "embedded":
        result = compare_engines(policy, task, engine_bench(engine, bench), dtype, ticks)
        return show(result, engines_table(result), file, as_json=as_json)
    on = chosen_device(device)
    loaded = load_policy(policy, dtype=chosen_dtype(dtype, on), device=on)
    prompts = task_prompts(loaded, task, bench.num_prompts)
    with ticks("bench decode", len(bench.batches) * repetitions) as tick:
        result = bench_decode(loaded, prompts, bench, tick)
    show(result, decode_table(result), file, as_json=as_json)


@bench_app.command()
def loss(
    file: FileArgument = None,
    chains: Annotated[int, typer.Option(min=1, help="Anchors; times --depths it is the number of rows.")] = 512,
    depths: Annotated[int, typer.Option(min=1, help="Draft depths.")] = 4,
    hidden: Annotated[int, typer.Option(min=1, help="Size of the hidden states.")] = 256,
    vocabulary: Annotated[int, typer.Option(min=2, help="Size of the vocabulary.")] = 248_320,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every candidate runs; figures are medians.")] = 3,
    objectives: Annotated[
        str, typer.Option(help="Of the fused path, with commas; ce and e2e_tv among them.")
    ] = ",".join(OBJECTIVES),
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Time value and gradient of the head's losses, eager against fused, and the memory they take.

    Example: bebop bench loss --hidden 128 --objectives ce,e2e_tv --json loss.json
    """
    bench = LossBench(
        num_chains=chains,
        num_depths=depths,
        hidden=hidden,
        vocabulary=vocabulary,
        dtype=dtype,
        device=str(chosen_device(device)),
        rounds=rounds,
        objectives=tuple(objectives.split(",")),
    )
    # Two eager candidates; a GPU's kernels are compared with the chunked path for the same two objectives.
    num_candidates = len(bench.objectives) + (4 if bench.device.startswith("cuda") else 2)
    with ticks("bench loss", num_candidates + rounds) as tick:
        result = bench_loss(bench, tick)
    show(result, loss_table(result), file, as_json=as_json)


@bench_app.command()
def learn(
    file: FileArgument = None,
    policy: Annotated[str, typer.Option(help="Name or directory of a policy.")] = "tiny",
    tasks: Annotated[str, typer.Option(help="Tasks that are played, with commas.")] = "math,code,agent",
    groups: Annotated[int, typer.Option(help="Problems per update.")] = 12,
    group_size: Annotated[int, typer.Option(help="Attempts at each.")] = 8,
    tokens: Annotated[int, typer.Option(help="Of a micro-batch.")] = 4096,
    repetitions: Annotated[int, typer.Option(help="Times that either arm runs; figures are medians.")] = 5,
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time an update of GRPO, with prompts run once per problem against once per attempt.

    Example: bebop bench learn --threads 1 --json learn.json
    """
    bench = LearnBench(
        tasks=tuple(tasks.split(",")),
        groups=groups,
        group_size=group_size,
        micro_batch_tokens=tokens,
        repetitions=repetitions,
    )
    use_threads(threads)
    on = chosen_device(device)
    loaded = load_policy(policy, dtype=chosen_dtype(dtype, on), device=on)
    played = played_groups(loaded, bench)
    with ticks("bench learn", repetitions + 1) as tick:
        result = bench_learn(loaded, played, bench, tick)
    show(result, learn_table(result), file, as_json=as_json)


def use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def ticks(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with a line of figures after every step."""
    with progress(title, total) as display:
        done = itertools.count(1)
        yield lambda figures: display(next(done), figures)


def show(result: dict[str, Any], table: Table, file: Path | None, *, as_json: bool) -> None:
    """JSON to the file where there is one, else JSON or the table to the screen."""
    text = json.dumps(result, indent=2) + "\n"
    if as_json and file is None:
        print(text, end="")
    else:
        Console().print(table)
    if file is not None:
        atomic_write(file, text)


def decode_table(result: dict[str, Any]) -> Table:
    """One line per batch size and arm."""
    columns = ("batch", "arm", "tokens/s", "spread", "/ K=0", "whole", "length", "draft", "verify", "sample")
    caption = (
        "tokens/s and / K=0: prompts apart (not generate's); spread: most less least; whole: / K=0, prompts and all; "
        "length: tokens per round; draft to sample: % of a round's time, the host's is the rest"
    )
    grid = Table(*columns, box=box.SIMPLE_HEAD, caption=caption, pad_edge=False, collapse_padding=True)
    for batch, figures in result["batches"].items():
        for label, arm in figures["arms"].items():
            speed, shares = arm.get("decode_tokens_per_second", arm["tokens_per_second"]), arm["round_shares"]
            decode, whole = (figures[name].get(label) for name in ("decode_speed_over_k0", "speed_over_k0"))
            grid.add_row(
                batch,
                label,
                f"{speed['median']:.0f}",
                f"{100 * (speed['max'] - speed['min']) / speed['median']:.0f}%",
                *("" if ratio is None else f"{ratio['median']:.2f}" for ratio in (decode, whole)),
                "" if arm["accept_length"] is None else f"{arm['accept_length']:.2f}",
                *(f"{100 * share:.0f}" for share in list(shares.values())[:-1]),
            )
        grid.add_section()
    return grid


def loss_table(result: dict[str, Any]) -> Table:
    """One line per candidate."""
    grid = Table("loss", "median s", "least to most", "peak MiB")
    for label, seconds in result["seconds"].items():
        spread = f"{seconds['min']:.3f} to {seconds['max']:.3f}"
        grid.add_row(label, f"{seconds['median']:.3f}", spread, f"{result['peak_bytes'][label] / 2**20:.0f}")
    return grid


def learn_table(result: dict[str, Any]) -> Table:
    """One line per arm."""
    ratio = result["speed_over_whole"]
    caption = f"shared over whole: {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f})"
    grid = Table("prompts", "median s", "least to most", "tokens/s", caption=caption)
    for label, seconds in result["seconds"].items():
        between = f"{seconds['min']:.3f} to {seconds['max']:.3f}"
        grid.add_row(label, f"{seconds['median']:.3f}", between, f"{result['tokens'] / seconds['median']:.0f}")
    return grid


def _draft_length(word: str) -> DraftLength:
    return "auto" if word == "auto" else _number(word, "--k")


def _number(word: str, option: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise UserError(f"{option} has {word!r}; give whole numbers with commas between them, such as 1,4") from error
