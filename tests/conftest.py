"""Every test sees eight CPU devices, strict broadcasting and a shared compile cache."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
    tempfile.gettempdir(), f"imagen_jax_test_cache_{os.getuid()}"
)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# Tiny programs run for milliseconds and compile for seconds: optimise the compiler's time.
jax.config.update("jax_disable_most_optimizations", True)

# The cascade that tests of sampling, weights and the denoiser share.
pytest_plugins = ["tiny_cascade"]
