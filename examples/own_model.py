"""A model of your own: `image_index` says which token belongs to which image.

What `patch` looks for: a module with `get_image_features`, `config.image_token_id`, and a `language_model`
(or `text_model`) of transformers that it calls with keywords: `inputs_embeds`, `attention_mask`,
`past_key_values` and, if it makes them, `position_ids`.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

import trimtok_fast as tt

IMAGE = 99


class MyConfig(LlamaConfig):
    """A Llama that knows a placeholder."""

    image_token_id = IMAGE


class MyModel(nn.Module):
    """Patches through one linear layer, then a language model."""

    def __init__(self, config: MyConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(12, config.hidden_size)
        self.language_model = LlamaModel(config)

    def get_image_features(self, patches):
        """Tokens [n, hidden_size] of patches [n, 12]."""
        return self.project(patches)

    def forward(self, input_ids=None, patches=None, attention_mask=None, past_key_values=None):
        """Hidden states."""
        embeds = self.language_model.embed_tokens(input_ids)
        if patches is not None:
            where = (input_ids == self.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(where, self.get_image_features(patches))
        return self.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, past_key_values=past_key_values
        )


def image_index(input_ids, visual):
    """Here an image is always 16 tokens, with no mark between two of them."""
    return (visual.cumsum(1) - 1) // 16


torch.manual_seed(0)
model = MyModel(
    MyConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
).eval()
input_ids = torch.tensor([[5, *[IMAGE] * 48, 6, 7, 8]])

config = tt.PruneConfig(keep_ratio=0.25)
with tt.patched(model, config, image_index=image_index) as handle, torch.no_grad():
    hidden = model(input_ids, patches=torch.randn(48, 12)).last_hidden_state

print(f"{input_ids.shape[1]} positions, {hidden.shape[1]} after pruning")
print(f"tokens kept of each image: {handle.last.results[0].cu_tokens.diff().tolist()}")
