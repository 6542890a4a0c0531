"""What is alive at every moment of a small step, followed by hand: forward, backward, and layers that run again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from simulator.parallel.eager_model import Traced
from simulator.parallel.liveness import PARTS, Checkpoint, Ledger, Node, Piece, States, Tensor, Walk
from simulator.parallel.step_peak import ShardedWalk, Sharding, plain_peak

NOTHING = States(parameter_bytes=0.0, optimizer_bytes=0.0)


def noted(monkeypatch: pytest.MonkeyPatch, *parts: str) -> list[tuple[object, ...]]:
    """Every moment that is looked at from now on: its name and the bytes of these parts."""
    moments: list[tuple[object, ...]] = []
    look = Ledger.look

    def note(self: Ledger, moment: str, **beside: float) -> None:
        moments.append((moment, *(self.held[part] + beside.get(part, 0.0) for part in parts)))
        look(self, moment, **beside)

    monkeypatch.setattr(Ledger, "look", note)
    return moments


def followed(
    monkeypatch: pytest.MonkeyPatch, pieces: Sequence[Piece], states: States = NOTHING
) -> tuple[list[tuple[object, ...]], Walk]:
    """Every moment of a step (its bytes of activations, temporaries and gradients), and the walk behind it."""
    moments = noted(monkeypatch, "activations", "temporaries", "gradients")
    walk = Walk(pieces, states)
    for piece in pieces:
        walk.forward(piece)
    for piece in reversed(pieces):
        walk.backward(piece)
    return moments, walk


def residual() -> list[Node]:
    """Two blocks with sums around them, between a table and a head that read the same parameter of 31 bytes."""
    x, h, o, s = Tensor(20), Tensor(30), Tensor(20), Tensor(20)
    h2, o2, s2, loss = Tensor(30), Tensor(20), Tensor(20), Tensor(1)
    return [
        Node(name="embed", makes=(x,), weights=(("table", 31),)),
        Node(name="up", reads=(x,), makes=(h,), keeps=(x,), weights=(("w", 5),), forward_bytes=100),
        Node(name="down", reads=(h,), makes=(o,), keeps=(h,), backward_bytes=50),
        Node(name="sum", reads=(x, o), makes=(s,), passes=True),
        Node(name="up 2", reads=(s,), makes=(h2,), keeps=(s,), weights=(("w 2", 6),)),
        Node(name="down 2", reads=(h2,), makes=(o2,), keeps=(h2,)),
        Node(name="sum 2", reads=(s, o2), makes=(s2,), passes=True),
        Node(name="head", reads=(s2,), makes=(loss,), keeps=(s2,), weights=(("table", 31),)),
    ]


FORWARD = [
    ("embed", 20, 0),
    ("up", 20 + 30 + 100, 0),
    ("down", 20 + 30 + 20, 0),
    ("sum", 20 + 30 + 20 + 20, 0),
    # The block's output went; x is kept by the product that read it.
    ("up 2", 20 + 30 + 20 + 30, 0),
    ("down 2", 20 + 30 + 20 + 30 + 20, 0),
    ("sum 2", 20 + 30 + 20 + 30 + 20 + 20, 0),
    ("head", 20 + 30 + 20 + 30 + 20 + 1, 0),
]
BACKWARD = [
    # The gradient of what the head read, and the table's, which waits for that of the embedding.
    ("head, backward", 120, 20 + 31),
    # A sum makes nothing: one gradient of 20 for both that it read.
    ("sum 2, backward", 100, 20 + 31),
    ("down 2, backward", 100, 20 + 31 + 30),
    # Its input's gradient is added into the one that waits there.
    ("up 2, backward", 70, 20 + 31 + 30 + 20 + 6),
    ("sum, backward", 50, 20 + 31),
    ("down, backward", 50, 20 + 31 + 30 + 50),
    ("up, backward", 20, 20 + 31 + 30 + 20 + 5),
    # The second gradient of the table, before it is added to the first.
    ("embed, backward", 0, 20 + 31 + 31),
]
GRADIENTS = [0] * 8 + [0] * 4 + [6] * 3 + [6 + 5]


def test_every_moment_of_a_step_with_sums_and_a_shared_table(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, walk = followed(monkeypatch, residual())
    assert moments == [(*moment, there) for moment, there in zip(FORWARD + BACKWARD, GRADIENTS, strict=True)]
    assert walk.ledger.held == dict.fromkeys(PARTS, 0) | {"gradients": 31 + 5 + 6}
    assert (walk.ledger.peak.moment, walk.ledger.peak.total_bytes) == ("down, backward", 50 + 131 + 6)


@pytest.mark.parametrize("gradient_bytes", [1.0, 42.0])
def test_gradients_that_stand_there_are_added_to(monkeypatch: pytest.MonkeyPatch, gradient_bytes: float) -> None:
    states = States(parameter_bytes=7.0, optimizer_bytes=3.0, gradient_bytes=gradient_bytes)
    moments, walk = followed(monkeypatch, residual(), states)
    assert moments == [(*moment, gradient_bytes) for moment in FORWARD + BACKWARD]
    # 100 + 81 bytes in backward of the second block's last product are as many as 50 + 131 in that of the first's.
    parts = {"parameters": 7, "optimizer": 3, "gradients": gradient_bytes, "activations": 100, "temporaries": 81}
    assert walk.ledger.peak.parts == dict.fromkeys(PARTS, 0) | parts
    assert (walk.ledger.peak.moment, walk.ledger.peak.total_bytes) == ("down 2, backward", 191 + gradient_bytes)


def test_a_gradient_that_others_hold_is_not_added_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum hands one gradient of 10 to x, y and z. When x's second gradient comes, those of y and z still wait for
    their backward: x's two are added in a third tensor, and so are those that come later.
    """
    x, y, z, q, r, loss = Tensor(10), Tensor(10), Tensor(10), Tensor(7), Tensor(10), Tensor(0)
    nodes = [
        Node(name="make", makes=(x,)), Node(name="y", reads=(x,), makes=(y,)), Node(name="z", reads=(x,), makes=(z,)),
        Node(name="q", reads=(x,), makes=(q,)), Node(name="sum", reads=(x, y, z), makes=(r,), passes=True),
        Node(name="loss", reads=(q, r), makes=(loss,)),
    ]  # fmt: skip
    moments, walk = followed(monkeypatch, nodes)
    assert [(name, temporaries) for name, _, temporaries, _ in moments[6:]] == [
        ("loss, backward", 7 + 10),
        ("sum, backward", 7 + 10),
        ("q, backward", 7 + 10 + 10 + 10),
        ("z, backward", 10 + 10 + 10),
        ("y, backward", 10 + 10 + 10),
        ("make, backward", 10),
    ]
    assert not any(walk.ledger.held.values())


def test_every_moment_of_a_step_whose_middle_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept over the checkpoint are x (20) and the storage (13) of a view that it reads. It runs again up to the last
    operator that keeps something; that one's output and workspace are not made again.
    """
    x, m, a, b, c, loss = Tensor(20), Tensor(13), Tensor(30), Tensor(40), Tensor(20), Tensor(0)
    part = Tensor(13, of=m)
    inside = (
        Node(name="p", reads=(x,), makes=(a,), keeps=(x,), forward_bytes=100),
        Node(name="q", reads=(a, part), makes=(b,), keeps=(a, part), forward_bytes=3),
        Node(name="r", reads=(b,), makes=(c,)),
    )
    pieces = [
        Node(name="x", makes=(x,)), Node(name="m", makes=(m,)), Node(name="view", reads=(m,), makes=(part,)),
        Checkpoint(nodes=inside), Node(name="loss", reads=(c,), makes=(loss,), keeps=(c,)),
    ]  # fmt: skip
    moments, walk = followed(monkeypatch, pieces)
    assert moments == [(*moment, 0) for moment in (
        ("x", 20, 0), ("m", 33, 0), ("view", 33, 0),
        ("p", 33 + 30 + 100, 0), ("q", 33 + 30 + 40 + 3, 0), ("r", 33 + 40 + 20, 0), ("loss", 33 + 20, 0),
        ("loss, backward", 33 + 20, 20),
        ("p", 33 + 30 + 100, 20), ("q", 33 + 30, 20),
        ("r, backward", 33 + 30, 20 + 40), ("q, backward", 33 + 30, 40 + 30 + 13), ("p, backward", 33, 30 + 13 + 20),
        # The view's gradient is joined in one of its storage.
        ("view, backward", 0, 13 + 20 + 13), ("m, backward", 0, 13 + 20), ("x, backward", 0, 20),
    )]  # fmt: skip
    assert not any(walk.ledger.held.values())


def test_a_checkpoint_makes_its_last_output_again_where_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x, a, loss = Tensor(20), Tensor(30), Tensor(0)
    inside = (Node(name="p", reads=(x,), makes=(a,), keeps=(a,), forward_bytes=3),)
    pieces = [Node(name="x", makes=(x,)), Checkpoint(nodes=inside), Node(name="loss", reads=(a,), makes=(loss,))]
    moments, walk = followed(monkeypatch, pieces)
    assert moments == [
        ("x", 20, 0, 0), ("p", 20 + 30 + 3, 0, 0), ("loss", 50, 0, 0), ("loss, backward", 20, 30, 0),
        ("p", 20 + 30 + 3, 30, 0), ("p, backward", 20 + 30, 30 + 20, 0), ("x, backward", 0, 20, 0),
    ]  # fmt: skip
    assert not any(walk.ledger.held.values())


def test_a_checkpoint_that_keeps_nothing_runs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, a = Tensor(20), Tensor(30)
    pieces = [Node(name="x", makes=(x,)), Checkpoint(nodes=(Node(name="p", reads=(x,), makes=(a,)),))]
    moments, walk = followed(monkeypatch, pieces)
    assert moments == [("x", 20, 0, 0), ("p", 50, 0, 0), ("p, backward", 20, 20, 0), ("x, backward", 0, 20, 0)]
    assert not any(walk.ledger.held.values())


def test_the_first_of_equal_moments_is_the_peak_and_nothing_has_none() -> None:
    ledger = Ledger(dict.fromkeys(PARTS, 0.0))
    ledger.look("nothing")
    assert (ledger.peak.moment, ledger.peak.total_bytes) == ("", 0)
    ledger.look("first", gathered=2.0)
    ledger.look("second", temporaries=2.0)
    assert (ledger.peak.moment, ledger.peak.parts["gathered"]) == ("first", 2)


def sharded() -> Traced:
    """Layers of 100 and 60 bytes of parameters, a root of 10, elements of 2 bytes; tables of 7, activations of none."""
    x, a, b, c = (Tensor(0) for _ in range(4))
    units = (
        ("root", (Node(name="in", makes=(x,), weights=(("w", 10),)),)),
        ("one", (Node(name="one", reads=(x,), makes=(a,), weights=(("w1", 100),)),)),
        ("two", (Node(name="two", reads=(a,), makes=(b,), weights=(("w2", 60),)),)),
        ("end", (Node(name="end", reads=(b,), makes=(c,)),)),
    )
    return Traced(units=units, layers=("one", "two"), constant_bytes=7.0, element_bytes=2.0)


def test_every_moment_of_a_sharded_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten ranks, gradients reduced in fp32: twice the bytes of the parameters; shards of them rest in fp32, a tenth."""
    moments = noted(monkeypatch, "gathered", "temporaries", "gradients")
    walk = ShardedWalk(sharded(), NOTHING, Sharding(ranks=10))
    walk.run()
    assert moments == [
        ("root, gather", 10, 0, 0), ("root, copy out", 10 + 10, 0, 0), ("in", 20, 0, 0),
        ("one, gather", 20 + 100, 0, 0), ("one, copy out", 20 + 200, 0, 0), ("one", 10 + 200, 0, 0),
        ("two, gather", 10 + 100 + 60, 0, 0), ("two, copy out", 10 + 100 + 120, 0, 0), ("two", 10 + 120, 0, 0),
        ("end", 10 + 60, 0, 0),
        ("two, gather", 10 + 60, 0, 0), ("end, backward", 10 + 60, 0, 0), ("two, copy out", 10 + 120, 0, 0),
        ("one, gather", 10 + 60 + 100, 0, 0), ("two, backward", 170, 60, 0),
        ("two, reduce", 10 + 100 + 120, 60, 0), ("two, reduced", 230, 0, 12),
        ("one, copy out", 230 + 100, 0, 12), ("one, backward", 10 + 100 + 120, 100, 12),
        ("one, reduce", 10 + 200, 100, 12), ("one, reduced", 10 + 200, 0, 12 + 20),
        ("in, backward", 10 + 200, 10, 32), ("root, reduce", 20, 10, 32), ("root, reduced", 20, 0, 34),
    ]  # fmt: skip
    assert walk.ledger.held == dict.fromkeys(PARTS, 0) | {"activations": 7, "gradients": 34}
    assert (walk.ledger.peak.moment, walk.ledger.peak.total_bytes) == ("one, copy out", 7 + 330 + 12)


def test_every_moment_of_a_sharded_step_that_keeps_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduced in bf16; bf16 parameters have bf16 gradients, a tenth of their own size each."""
    moments = noted(monkeypatch, "gathered", "temporaries", "gradients")
    sharding = Sharding(ranks=10, reduce_dtype="bf16", stored_bytes=2.0, reshard_after_forward=False)
    walk = ShardedWalk(sharded(), NOTHING, sharding)
    walk.run()
    assert moments[3:] == [
        ("one, gather", 20 + 100, 0, 0), ("one, copy out", 20 + 200, 0, 0), ("one", 10 + 200, 0, 0),
        ("two, gather", 210 + 60, 0, 0), ("two, copy out", 210 + 120, 0, 0), ("two", 110 + 120, 0, 0),
        ("end", 110 + 120, 0, 0), ("end, backward", 110 + 60, 0, 0), ("two, backward", 170, 60, 0),
        ("two, reduce", 110 + 60, 60, 0), ("two, reduced", 170, 0, 6), ("one, backward", 170, 100, 6),
        ("one, reduce", 10 + 100, 100, 6), ("one, reduced", 110, 0, 16), ("in, backward", 110, 10, 16),
        ("root, reduce", 10, 10, 16), ("root, reduced", 10, 0, 17),
    ]  # fmt: skip
    assert walk.ledger.held["gathered"] == 0


def test_sharded_gradients_of_earlier_micro_batches_are_added_to() -> None:
    states = States(parameter_bytes=5.0, optimizer_bytes=3.0, gradient_bytes=34.0)
    walk = ShardedWalk(sharded(), states, Sharding(ranks=10))
    assert walk.run().total_bytes == 5 + 3 + 34 + 7 + 330
    assert walk.ledger.held["gradients"] == 34


def test_one_process_holds_constant_tables_throughout() -> None:
    """All gradients, and the root's on its way, when the last operator's backward runs."""
    peak = plain_peak(sharded(), States(parameter_bytes=170.0, optimizer_bytes=3.0))
    assert (peak.moment, peak.parts["activations"]) == ("in, backward", 7)
    assert peak.total_bytes == 170 + 3 + 7 + 160 + 10
