"""peft: LoRA beside frozen weights, also of dtypes that no optimizer steps."""

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_moved, assert_same  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def adapted(cls, given):
    """A model with adapters, and its optimizer: of all parameters, or of those that train."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32, attn_pdrop=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    adapters = peft.LoraConfig(
        r=4, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.0
    )
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), adapters)
    # As quantized weights are: frozen, and of a dtype that no optimizer takes.
    model.register_parameter(
        "quantized", torch.nn.Parameter(torch.ones(8, dtype=torch.uint8), requires_grad=False)
    )
    params = model.parameters()
    if given == "trained":
        params = [p for p in params if p.requires_grad]
    return model, cls(params, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("given", ["all", "trained"])
def test_adapters_train_as_with_torch(given):
    models = {}
    tokens = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(1))
    for name, cls in OPTIMIZERS.items():
        model, optimizer = adapted(cls, given)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        for _ in range(8):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        models[name] = model
        if name == "ours":
            assert_fused(optimizer)
            assert len(optimizer.state) == 2
            assert_moved(model, start)
    assert_close(models["ours"], models["torch"])


def test_it_resumes_bit_for_bit(tmp_path):
    tokens = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(1))

    def train(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    model, optimizer = adapted(OPTIMIZERS["ours"], "all")
    train(model, optimizer)
    torch.save(peft.get_peft_model_state_dict(model), tmp_path / "adapters")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer")
    train(model, optimizer)
    resumed, other = adapted(OPTIMIZERS["ours"], "all")
    peft.set_peft_model_state_dict(resumed, torch.load(tmp_path / "adapters"))
    other.load_state_dict(torch.load(tmp_path / "optimizer"))
    train(resumed, other)
    assert_same(resumed, model)
