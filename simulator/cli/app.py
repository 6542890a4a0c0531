"""The command group. Commands are imported when they run, so that `--help` stays quick."""

from __future__ import annotations

from importlib import import_module

import click

from simulator import __version__

COMMANDS = {
    "estimate": "What one training step costs under one strategy.",
    "plan": "The best strategy of the whole legal space, proven.",
    "compare": "Two estimates side by side.",
    "explain": "What one change of hardware or strategy would buy.",
    "export": "A strategy as a training framework's own settings, or a model as config.json.",
    "import": "A framework's settings as a strategy, or config.json as a model.",
    "count": "Parameters and FLOPs of a model.",
    "catalog": "List, show and check the models, clusters and frameworks.",
    "network": "Collectives by size and algorithm, and what each axis crosses.",
    "project": "Days, device hours, dollars and energy of a training run, with failures.",
    "explore": "A local page to turn the dials.",
    "report": "One HTML file: tables, pictures, assumptions and sources.",
    "timeline": "What each pipeline rank does in one step, as a table and a picture.",
    "trace": "One step as a file that Perfetto opens.",
    "fleet": "Several jobs on one cluster: placement and contention.",
    "serve": "Prefill, decode, cache and price of serving a model (a first step).",
    "sweep": "Every case of a file: grids and zips, in parallel, resumable.",
    "calibrate": "Measure this machine's kernels and collectives.",
    "measure": "Run real training steps on this machine beside their predictions.",
    "validate": "Compare predictions with published runs, kernels or torch's own counts.",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        # `import` is a word of Python's own, so its module is called otherwise.
        module = import_module(f"simulator.cli.{'importing' if cmd_name == 'import' else cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from simulator.errors import did_you_mean

            raise click.UsageError(f"No such command '{args[0]}'. {did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shardwise")
@click.option("--catalog", "catalogs", multiple=True, metavar="DIR",
              help="Also read models/, hardware/ and frameworks/ below DIR (repeatable).")  # fmt: skip
def app(catalogs: tuple[str, ...]) -> None:
    """Know the step time before you rent the cluster.

    Predicts what one training step of a large model costs on a cluster under a parallel strategy: time, memory,
    traffic, and where the time goes.
    """
    if catalogs:
        from simulator.catalog import add_catalog

        for folder in catalogs:
            add_catalog(folder)
