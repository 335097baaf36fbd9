"""lawm_jax: latent action world models (Garrido et al. 2026) in JAX.

Dims legend, for the shapes in docstrings:

  B clips, F frames, T time steps, H W pixels, N tokens per step, D token width, A latent-action
  width, U real-action width, K codes, P plan candidates or predicted steps.

  video  uint8   [B, F, H, W, 3]   RGB
  s      float32 [B, T, N, D]      states, the output of the frozen encoder
  z      float32 [B, T-1, A]       latent actions; z[:, t] is between steps t and t + 1
  u      float32 [B, T-1, U]       real actions

T = F / tubelet for a video encoder, and T = F for an image encoder or if frames are repeated.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module, imported on first use so that `import lawm_jax` is fast.
_HOME = {
    "WorldModel": "world_model",
    "build": "world_model",
    "init": "world_model",
    "encode": "world_model",
    "infer_actions": "world_model",
    "predict": "world_model",
    "rollout": "world_model",
    "prefill": "world_model",
    "rollout_latents": "world_model",
    "rollout_actions": "world_model",
    "decode": "world_model",
    "map_actions": "world_model",
    "loss": "world_model",
    "sample_actions": "world_model",
    "load_encoder": "nn.pretrained",
    "load": "train.models",
    "save": "train.models",
    "save_pretrained": "train.sharing",
    "push_to_hub": "train.sharing",
    "train_step": "train.step",
    "cem": "plan.planners",
    "make_mesh": "train.sharding",
    "clips": "data.pipeline",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'lawm_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lawm_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
