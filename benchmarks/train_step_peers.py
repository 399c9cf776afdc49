"""Other projects' steps on the same batch, and the experts of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.train_step_model import Step, batch_of
from trainer.config import TrainerConfig

# batched_mm, which transformers has too, copies an expert's matrices for every routed row: 13 GB a layer at this size.
EXPERTS = ("eager", "grouped_mm")


def transformers(config: TrainerConfig, experts: str) -> Step:
    """Hugging Face's OlmoeForCausalLM, its balance loss included, with fused AdamW and the same clipping.

    Args:
        experts: the implementation of its experts.

    Raises:
        ImportError: it is not installed.
    """
    from transformers import OlmoeConfig, OlmoeForCausalLM  # pyright: ignore[reportMissingImports]

    model, moe = config.model, config.model.moe
    assert moe is not None
    theirs = OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.d_model,
            intermediate_size=moe.d_ff,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            num_experts=moe.experts,
            num_experts_per_tok=moe.top_k,
            max_position_embeddings=model.max_seq_len,
            output_router_logits=True,
            router_aux_loss_coef=moe.balance_loss,
            use_cache=False,
            eos_token_id=None,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
            experts_implementation=experts,  # pyright: ignore[reportCallIssue]
        )
    )
    optim = config.optim
    optimizer = torch.optim.AdamW(
        theirs.parameters(),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    batch = batch_of(config)

    def step() -> float:
        # Its labels are the inputs, which it shifts by itself.
        loss = theirs(input_ids=batch.tokens_BS, labels=batch.tokens_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_experts(config: TrainerConfig) -> Step:
    """Forward and backward of one of our layers of experts, compiled; activations bfloat16, parameters float32."""
    from trainer.model.context import Context
    from trainer.model.moe import MoE

    layer = MoE(config.model, 1)
    compiled, context = torch.compile(layer), Context(None, None, None, None)
    return _layer_step(config, layer, lambda x_BSD: compiled(x_BSD, context)[0])


def torchtitan_experts(config: TrainerConfig) -> Step:
    """The same of torchtitan, whose experts compute in bfloat16 only.

    Raises:
        ImportError: it is not installed (``pip install torchtitan triton``).
    """
    from torchtitan.models.common.linear import Linear  # pyright: ignore[reportMissingImports]
    from torchtitan.models.common.moe import (  # pyright: ignore[reportMissingImports]
        GroupedExperts,
        MoE,
        RoutedExperts,
        TokenChoiceTopKRouter,
    )
    from torchtitan.models.common.token_dispatcher import (  # pyright: ignore[reportMissingImports]
        LocalTokenDispatcher,
    )

    model, moe = config.model, config.model.moe
    assert moe is not None
    layer = MoE.Config(
        num_experts=moe.experts,
        routed_experts=RoutedExperts.Config(
            inner_experts=GroupedExperts.Config(dim=model.d_model, hidden_dim=moe.d_ff, num_experts=moe.experts),
            token_dispatcher=LocalTokenDispatcher.Config(num_experts=moe.experts, top_k=moe.top_k),
        ),
        router=TokenChoiceTopKRouter.Config(
            num_experts=moe.experts,
            gate=Linear.Config(in_features=model.d_model, out_features=moe.experts),
            top_k=moe.top_k,
            score_func="softmax",
        ),
        load_balance_coeff=None,
    ).build()
    layer.router.to(torch.bfloat16)  # as its mixed precision has it; scores are computed in float32 all the same
    compiled = torch.compile(layer)

    def forward(x_BSD: Tensor) -> Tensor:
        with torch._dynamo.config.patch(capture_scalar_outputs=True):  # as its trainer sets it
            return compiled(x_BSD)

    return _layer_step(config, layer, forward)


def _layer_step(config: TrainerConfig, layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Step:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    size = (config.parallel.micro_batch, config.data.seq_len, config.model.d_model)

    def step() -> float:
        # Other rows for each expert every time, as in training: kernels that are made for one number of them show it.
        x_BSD = torch.randn(size, generator=generator).bfloat16().requires_grad_()
        total = forward(x_BSD).float().square().sum()
        total.backward()
        layer.zero_grad()
        return total.item()

    return step
