"""Other projects' steps on the same batch."""

from __future__ import annotations

import torch

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
