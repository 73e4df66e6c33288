"""``bebop policy``: look at a policy's checkpoint, and put a head into one."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bebop.errors import UserError
from bebop.models.fingerprint import Fingerprint
from bebop.models.loading import check_head, load_tokenizer
from bebop.models.metadata import HeadRecord, write_head_record
from bebop.models.names import resolve_name
from bebop.models.shards import StoredTensor
from bebop.models.spec import PolicySpec, check_backbone, read_spec
from bebop.models.stitch import stitch as stitch_head
from bebop.models.stored_fingerprint import stored_fingerprint
from bebop.tasks.chat import chat_of
from bebop.training.draft_vocabulary import WrittenTokens, drafted
from bebop.training.sample_files import read_samples
from bebop.training.samples import usable

policy_app = typer.Typer(
    name="policy", help="Look at a policy's checkpoint, and put a head into one.", no_args_is_help=True
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySummary:
    """What `bebop policy show` prints, field by field."""

    directory: str
    model_type: str
    contract: str
    options: dict[str, Any]
    num_shards: int
    dtypes: dict[str, int]
    """Number of tensors per stored dtype."""
    tied_embeddings: bool
    num_backbone_tensors: int
    num_backbone_parameters: int
    num_head_tensors: int
    num_head_parameters: int
    head_experts: str
    """How the head's experts are stored: "none", "fused" or "per expert"."""
    head_provenance: str
    draft_vocabulary: str
    """How many tokens the head may draft."""
    fingerprint: dict[str, str | None]


@policy_app.command()
def show(
    path: Annotated[str, typer.Argument(help="Checkpoint directory, or a built-in name such as tiny.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON, for programs.")] = False,
) -> None:
    """Check a policy's checkpoint and say what is in it: contract, tensors, fingerprints, where its head was trained.

    Every tensor is accounted for; a missing, unexpected or wrongly shaped one is an error that names it.

    Example: [bold]bebop policy show tiny[/bold]
    """
    spec = read_spec(resolve_name(path), need_contract=False)
    summary = asdict(summarise(spec))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    width = max(map(len, summary))
    for key, value in summary.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        if key == "fingerprint":
            text = f"\n{' ' * width}  ".join(f"{group:9} {digest or 'none'}" for group, digest in value.items())
        typer.echo(f"{key.replace('_', ' '):{width}}  {text or 'none'}")


@policy_app.command()
def stitch(
    base: Annotated[Path, typer.Argument(help="Checkpoint directory that the head is put into; it is left as it is.")],
    head: Annotated[
        Path, typer.Argument(help="Checkpoint with the head, an EAGLE draft directory, or a safetensors file.")
    ],
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link unchanged shards instead of copying; edit neither in place then.")
    ] = False,
) -> None:
    """Put a trained head into a checkpoint without loading its backbone; every other tensor keeps its bytes.

    Example: [bold]bebop policy stitch Qwen3.5-4B heads/e2e_tv Qwen3.5-4B-bebop[/bold]
    """
    report = stitch_head(base, head, out, link=link)
    trained_on = f", trained on backbone {report.trained_on[:12]}" if report.trained_on else ""
    typer.echo(
        f"{out}: {base} with {report.num_head_tensors} tensors of a {report.contract} head{trained_on}; "
        f"{report.num_dropped} of its former head left out."
    )


@policy_app.command()
def vocabulary(
    path: Annotated[Path, typer.Argument(help="Checkpoint directory with a head; its bebop.json is written.")],
    data: Annotated[
        Path | None, typer.Argument(help="Rollouts of the policy, as for train-mtp's data.file.", show_default=False)
    ] = None,
    every_token: Annotated[bool, typer.Option("--every-token", help="Let it draft every token again.")] = False,
) -> None:
    """Let a checkpoint's head draft only the tokens found in the policy's rollouts: less to compute, the same output.

    Where these are more than half of the vocabulary, or unseen ones too likely, the head may draft every token.

    Example: [bold]bebop policy vocabulary checkpoints/mine runs/head/rollouts.jsonl[/bold]
    """
    spec = read_spec(path)
    if not _head_tensors(spec) or spec.contract is None:
        raise UserError(f"{path} has no head to draft with; stitch one in with `bebop policy stitch`.")
    if (data is None) != every_token:
        raise UserError("name the file of rollouts, or give --every-token: one of the two")
    size = spec.config.vocab_size
    written = _written_in(data, spec) if data else None
    few = written.draft_vocabulary(size) if written else None
    record = spec.record or HeadRecord(contract=spec.contract.name, options=spec.contract.options)
    write_head_record(path, spec.contract, replace(record, draft_vocabulary=few))
    typer.echo(f"{path}: the head may draft {written.describe(size) if written else drafted(few, size)}")


def _written_in(data: Path, spec: PolicySpec) -> WrittenTokens:
    read = read_samples(data, lambda: chat_of(load_tokenizer(spec.directory, spec.config)))
    samples = usable(read, spec.config.vocab_size, spec.config.max_position_embeddings, str(data))
    return WrittenTokens.of(one.transcript for one in samples)


def summarise(spec: PolicySpec) -> PolicySummary:
    """Checks a checkpoint (UserError where it is broken) and describes it; hashes every tensor."""
    backbone = [spec.checkpoint.tensors[name] for name in check_backbone(spec)]
    head = _head_tensors(spec)
    fingerprint = stored_fingerprint(spec)
    few = spec.record.draft_vocabulary if spec.record else None
    return PolicySummary(
        directory=str(spec.directory),
        model_type=str(spec.raw_config.get("model_type")),
        contract=spec.contract.name if spec.contract else "none known",
        options={key: value for key, value in asdict(spec.contract.options).items()} if spec.contract else {},
        num_shards=len(spec.checkpoint.shards),
        dtypes=dict(Counter(tensor.dtype for tensor in (*backbone, *head))),
        tied_embeddings=bool(spec.config.tie_word_embeddings),
        num_backbone_tensors=len(backbone),
        num_backbone_parameters=_num_parameters(backbone),
        num_head_tensors=len(head),
        num_head_parameters=_num_parameters(head),
        head_experts=_expert_layout(head),
        head_provenance=_provenance(spec, fingerprint),
        draft_vocabulary=drafted(few, spec.config.vocab_size) if head else "none",
        fingerprint=asdict(fingerprint),
    )


def _head_tensors(spec: PolicySpec) -> list[StoredTensor]:
    slots = check_head(spec) if spec.contract else None
    checkpoint = spec.head_checkpoint
    return [checkpoint.tensors[name] for name in slots] if slots and checkpoint else []


def _num_parameters(tensors: Iterable[StoredTensor]) -> int:
    return sum(tensor.num_elements for tensor in tensors)


def _expert_layout(head: list[StoredTensor]) -> str:
    names = [tensor.name for tensor in head]
    if any(name.endswith("experts.gate_up_proj") for name in names):
        return "fused"
    return "per expert" if any(".experts." in name for name in names) else "none"


def _provenance(spec: PolicySpec, fingerprint: Fingerprint) -> str:
    if fingerprint.head is None:
        return "no head"
    trained_on = spec.record.trained_on if spec.record else None
    if trained_on is None:
        return "not recorded"
    if trained_on == fingerprint.backbone:
        return "trained on this backbone"
    return f"trained on another backbone (sha256 {trained_on[:12]}...)"
