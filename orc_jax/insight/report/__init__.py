"""One self-contained HTML page about runs: `python -m orc_jax.report RUN [RUN …] --out=FILE`."""
