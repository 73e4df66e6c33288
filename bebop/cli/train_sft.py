"""`bebop train-sft CONFIG`: supervised fine-tuning on worked transcripts."""

from __future__ import annotations

from bebop.cli.devices import chosen_device, chosen_dtype
from bebop.cli.options import ConfigArgument, DryRunOption, OverridesArgument, resolve
from bebop.cli.output import check_output
from bebop.cli.progress import progress
from bebop.cli.resuming import open_run
from bebop.models.names import output_path
from bebop.models.policy import Policy, load_policy, save_policy
from bebop.tasks.chat import chat_of
from bebop.tasks.registry import load_tasks
from bebop.tasks.turns import task_turns
from bebop.training.allocator import prepare_memory_for_training
from bebop.training.optimiser import STEP_SIZES
from bebop.training.sft import StepReport, TrainSFT, train_sft
from bebop.training.transcripts import TranscriptSource, file_transcripts, task_transcripts

MAY_DIFFER = (
    *("steps", "run", "output", "checkpoint_every", "log_every", "data.micro_batch_tokens"),
    *(f"optimiser.{one}" for one in STEP_SIZES),
)
"""Settings with which a run can go on although it was started with others."""


def command(config: ConfigArgument, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Tune a policy on the tasks' worked transcripts, or on a JSONL file of chats.

    Interrupted, the same command goes on from the last checkpoint of its run directory.

    Example: bebop train-sft configs/train-sft-tiny.yaml steps=200 optimiser.lr=1e-3
    """
    settings = resolve(TrainSFT, config, overrides, dry_run=dry_run)
    check_output(output_path(settings.output))
    prepare_memory_for_training()
    device = chosen_device(settings.device)
    policy = load_policy(settings.policy, dtype=chosen_dtype(settings.dtype, device), device=device, head=settings.head)
    source = open_source(settings, policy)
    with open_run(settings.run, settings, settings.data.seed, MAY_DIFFER) as run:
        with progress("train-sft", settings.steps) as show:
            train_sft(settings, policy, source, run, lambda report: show(report.step, figures(report)))
        save_policy(policy, output_path(settings.output))
    print(f"the tuned policy is in {output_path(settings.output)}")


def open_source(settings: TrainSFT, policy: Policy) -> TranscriptSource:
    data = settings.data
    chat = chat_of(policy.tokenizer, data.thinking)
    if data.chats is not None:
        return file_transcripts(data.chats, chat, data.per_step, data.max_tokens, data.seed)
    turns = task_turns({one.name: one.share for one in data.tasks})
    return task_transcripts(load_tasks(data.tasks, data.seed), turns, chat, data.per_step, data.max_tokens)


def figures(report: StepReport) -> str:
    speed = report.num_tokens / report.seconds
    return f"loss {report.loss.value:.3f}  correct {report.correct.value:.1%}  {speed:.0f} tokens/s"
