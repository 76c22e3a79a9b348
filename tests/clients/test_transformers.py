"""transformers.Trainer."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

from radam_fused import FusedRAdam  # noqa: E402

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_moved, assert_same  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS, SAVED = 8, 4


def trainer(folder, cls, how, steps=STEPS, given=None, max_grad_norm=1.0, **more):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1,
        n_head=2,
        n_embd=16,
        n_positions=16,
        vocab_size=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(32, (64, 8), generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=SAVED,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        per_device_train_batch_size=4,
        max_grad_norm=max_grad_norm,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **more,
    )
    options = {"lr": arguments.learning_rate, "betas": [0.9, 0.99], **(given or {})}
    given = (
        {"optimizers": (cls(model.parameters(), **options), None)}
        if how == "optimizers"
        else {"optimizer_cls_and_kwargs": (cls, options)}
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    return Trainer(model, arguments, train_dataset=data, **given)


def optimizer_of(done):
    return getattr(done.optimizer, "optimizer", done.optimizer)


@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_as_with_torch(how, accumulation, tmp_path):
    runs = {}
    for name, cls in OPTIMIZERS.items():
        runs[name] = trainer(tmp_path / name, cls, how, gradient_accumulation_steps=accumulation)
        start = {n: p.detach().clone() for n, p in runs[name].model.named_parameters()}
        runs[name].train()
    assert_fused(optimizer_of(runs["ours"]))
    assert_moved(runs["ours"].model, start)
    assert_close(runs["ours"].model, runs["torch"].model)


@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
def test_it_resumes_bit_for_bit(how, tmp_path):
    whole = trainer(tmp_path, FusedRAdam, how)
    whole.train()
    assert (tmp_path / f"checkpoint-{SAVED}" / "model.safetensors").exists()
    resumed = trainer(tmp_path, FusedRAdam, how)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert_fused(optimizer_of(resumed))
    assert {state["step"].item() for state in optimizer_of(resumed).state.values()} == {STEPS}
    assert_same(resumed.model, whole.model)


@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
def test_the_step_clips_instead(how, tmp_path):
    clips = {"max_grad_norm": 0.3}
    ours = trainer(tmp_path / "ours", FusedRAdam, how, given=clips, max_grad_norm=0)
    theirs = trainer(tmp_path / "theirs", torch.optim.RAdam, how, max_grad_norm=0.3)
    for run in (ours, theirs):
        run.train()
    assert optimizer_of(ours).grad_norm > 0.3
    assert_close(ours.model, theirs.model)
