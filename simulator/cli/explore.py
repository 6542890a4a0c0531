"""shardwise explore: a local page to turn the dials."""

from __future__ import annotations

import click


@click.command("explore")
@click.argument("model", required=False)
@click.argument("cluster", required=False)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True,
              help="Port on 127.0.0.1 (0: any free one).")  # fmt: skip
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser (default), or print its link.")
def command(*, model: str | None, cluster: str | None, port: int, browser: bool) -> None:
    """Open a local page that turns the dials of an estimate, of MODEL on CLUSTER if given.

    It listens on this machine only, and asks no other machine for anything. Ctrl-C ends it.
    """
    from urllib.parse import urlencode

    from simulator import catalog
    from simulator.web.server import open_explorer

    for name in filter(None, (model, cluster)):
        if catalog.is_path(name):
            raise click.UsageError(f"{name} is a path: the page takes names of the catalogue (see --catalog).")
    chosen = {}
    if model:
        chosen["model"] = catalog.load_model(model).name
    if cluster:
        chosen["cluster"] = catalog.load_cluster(cluster).name
    with open_explorer(port) as server:
        url = server.url + (f"#{urlencode(chosen)}" if chosen else "")
        click.echo(f"{url}\nCtrl-C ends it.")
        server.warm_up()
        if browser:
            import webbrowser

            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("ended", err=True)
