"""The `mara` command: the subcommands of `langchain_mara.cli`, and one module for each further subcommand."""

from langchain_mara.cli import app
from langchain_mara.server.command import serve
from langchain_mara.serving.vllm_plugin.command import VLLM_OPTIONS, vllm
from langchain_mara_training.commands.demo import demo
from langchain_mara_training.commands.evaluate import calibrate, evaluate
from langchain_mara_training.commands.fit import distill, fit
from langchain_mara_training.commands.generate import generate
from langchain_mara_training.commands.label import label
from langchain_mara_training.commands.report import report, table
from langchain_mara_training.commands.rl import rl

__all__ = ["app"]

for command in (generate, demo, serve, label, fit, distill, rl, calibrate, evaluate, report, table):
    app.command()(command)
app.command(context_settings=VLLM_OPTIONS)(vllm)
