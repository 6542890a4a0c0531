"""The walk over what is alive, against counts by hand."""

from __future__ import annotations

import pytest

from simulator.catalog import load_framework
from simulator.errors import InputError
from simulator.parallel.liveness import Checkpoint, Node, States, Tensor, Walk
from simulator.parallel.step_peak import ShardedWalk, Sharding, Traced, eager_peak
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

EMPTY = States(parameter_bytes=0.0, optimizer_bytes=0.0)


def run(*pieces: Node | Checkpoint, states: States = EMPTY) -> Walk:
    walk = Walk(pieces, states)
    for piece in pieces:
        walk.forward(piece)
    for piece in reversed(pieces):
        walk.backward(piece)
    return walk


def chain(*, keeps: bool = True) -> tuple[list[Node], list[Tensor]]:
    """Three products, each of which keeps what it reads: x -> a -> b -> c, with 1, 10, 100 and 1000 bytes."""
    x, a, b, c = (Tensor(size) for size in (1.0, 10.0, 100.0, 1000.0))
    nodes = [Node(name="make", makes=(x,))]
    for name, read, made in (("first", x, a), ("second", a, b), ("third", b, c)):
        nodes.append(Node(name=name, reads=(read,), makes=(made,), keeps=(read,) if keeps else ()))
    return nodes, [x, a, b, c]


def test_kept_tensors_and_the_gradients_at_hand_are_alive() -> None:
    """Forward ends with all kept and the last made: 1 + 10 + 100 + 1000. Backward of the third makes b's gradient
    beside what is kept: 1 + 10 + 100 + 100, as the loss's own gradient is a number.
    """
    nodes, _ = chain()
    peak = run(*nodes).ledger.peak
    assert (peak.moment, peak.total_bytes) == ("third", 1111.0)


def test_what_nobody_keeps_is_let_go_after_its_last_reader() -> None:
    nodes, _ = chain(keeps=False)
    walk = run(*nodes)
    assert walk.ledger.peak.total_bytes == 1100.0
    assert not any(walk.ledger.held.values())


def test_backward_holds_a_gradient_until_it_was_read() -> None:
    """The peak is in backward: the third let go of b, the second reads a (10) and b's gradient (100), makes a's
    gradient (10) and has a workspace of 5000; x (1) is still kept.
    """
    x, a, b, c = (Tensor(size) for size in (1.0, 10.0, 100.0, 0.0))
    nodes = [
        Node(name="make", makes=(x,)), Node(name="first", reads=(x,), makes=(a,), keeps=(x,)),
        Node(name="second", reads=(a,), makes=(b,), keeps=(a,), backward_bytes=5000.0),
        Node(name="third", reads=(b,), makes=(c,), keeps=(b,)),
    ]  # fmt: skip
    peak = run(*nodes).ledger.peak
    assert peak.moment == "second, backward"
    assert peak.parts["activations"] == 11.0
    assert peak.parts["temporaries"] == 5000.0 + 100.0 + 10.0


def test_a_checkpoint_keeps_its_input_and_makes_the_rest_again() -> None:
    """Forward: x, then a, b, c in turn, of which none stays. Backward makes a and b again (c is not needed)."""
    nodes, _ = chain()
    walk = run(nodes[0], Checkpoint(nodes=tuple(nodes[1:])))
    assert walk.ledger.peak.total_bytes == 1.0 + 100.0 + 1000.0
    assert not any(walk.ledger.held.values())
    small = [Node(name=node.name, reads=node.reads, makes=node.makes if node.name != "third" else (Tensor(0.0),),
                  keeps=node.keeps) for node in nodes]  # fmt: skip
    peak = run(small[0], Checkpoint(nodes=tuple(small[1:]))).ledger.peak
    assert (peak.moment, peak.parts["activations"], peak.parts["temporaries"]) == ("third, backward", 111.0, 100.0)


def test_a_view_lives_as_long_as_the_tensor_it_lies_in() -> None:
    """Two halves of one product; only one half is kept, and with it the whole."""
    x = Tensor(40.0)
    left, right = Tensor(20.0, of=x), Tensor(20.0, of=x)
    loss = Tensor(0.0)
    nodes = [Node(name="make", makes=(x,)), Node(name="split", reads=(x,), makes=(left, right)),
             Node(name="read", reads=(left,), makes=(loss,), keeps=(left,))]  # fmt: skip
    walk = Walk(nodes, EMPTY)
    for node in nodes:
        walk.forward(node)
    assert walk.ledger.held["activations"] == 40.0
    walk.backward(nodes[2])
    assert (walk.ledger.held["activations"], walk.ledger.held["temporaries"]) == (0.0, 20.0)


def test_gradients_of_both_readers_are_added_in_place() -> None:
    """x is read twice: its first gradient waits for the second, then stays alone."""
    x, a, b, total, loss = Tensor(8.0), Tensor(0.0), Tensor(0.0), Tensor(0.0), Tensor(0.0)
    nodes = [Node(name="make", makes=(x,)), Node(name="one", reads=(x,), makes=(a,)),
             Node(name="two", reads=(x,), makes=(b,)), Node(name="sum", reads=(a, b), makes=(total,), passes=True),
             Node(name="loss", reads=(total,), makes=(loss,))]  # fmt: skip
    peak = run(*nodes).ledger.peak
    assert (peak.moment, peak.parts["temporaries"]) == ("one, backward", 16.0)


def test_a_table_read_twice_has_one_gradient_when_both_have_run() -> None:
    x, made = Tensor(0.0), Tensor(0.0)
    nodes = [Node(name="embed", makes=(x,), weights=(("table", 6.0),)),
             Node(name="head", reads=(x,), makes=(made,), weights=(("table", 6.0),))]  # fmt: skip
    walk = run(*nodes)
    assert walk.ledger.held["gradients"] == 6.0
    assert walk.ledger.peak.parts["temporaries"] == 12.0
    later = run(*nodes, states=States(parameter_bytes=0.0, optimizer_bytes=0.0, gradient_bytes=6.0))
    assert later.ledger.held["gradients"] == 6.0
    assert later.ledger.peak.total_bytes == 18.0


def traced_layers() -> Traced:
    """Two layers of 100 bytes of parameters each and a root of 10, with activations of nothing."""
    x, a, b, c = (Tensor(0.0) for _ in range(4))
    units = (
        ("root", (Node(name="in", makes=(x,), weights=(("w", 10.0),)),)),
        ("one", (Node(name="one", reads=(x,), makes=(a,), weights=(("w1", 100.0),)),)),
        ("two", (Node(name="two", reads=(a,), makes=(b,), weights=(("w2", 100.0),)),)),
        ("end", (Node(name="end", reads=(b,), makes=(c,)),)),
    )  # fmt: skip
    return Traced(units=units, layers=("one", "two"), constant_bytes=0.0, element_bytes=4.0)


def test_a_sharded_step_holds_a_layer_the_next_and_what_is_being_reduced() -> None:
    """Backward of the first layer: root 10, its parameters 100, its gradient 100, the second's buffer being reduced
    100, and no layer is left to be gathered ahead. When it is reduced: root, its gradient 100 and its buffer 100, the
    second's buffer let go. In forward, the second's copy out: root, the flat buffers of both and its parameters.
    """
    walk = ShardedWalk(traced_layers(), EMPTY, Sharding(ranks=10))
    peak = walk.run()
    # The second layer's shard of the gradient (10) is there too.
    assert (peak.moment, peak.total_bytes) == ("one, copy out", 10 + 100 + 100 + 100 + 10)
    assert walk.ledger.held["gradients"] == 21.0
    assert walk.ledger.held["gathered"] == walk.ledger.held["temporaries"] == 0.0


def test_kept_parameters_are_gathered_once() -> None:
    """All of them stand beside the last layer's flat buffer."""
    walk = ShardedWalk(traced_layers(), EMPTY, Sharding(ranks=10, reshard_after_forward=False))
    peak = walk.run()
    assert walk.ledger.held["gathered"] == 0.0
    assert peak.moment == "two, copy out"
    assert peak.total_bytes == 210.0 + 200.0


def test_later_micro_batches_find_gradients() -> None:
    """The gradients of the first micro-batch stand beside everything of the second: exactly 4 B a parameter more, where
    the peak is at the loss.
    """
    framework = load_framework("pytorch-cpu")
    model = gpt(64, 2, 2, vocab=4096, seq_len=64)
    run_one = Run(global_batch=2, seq_len=64, precision="fp32", framework="pytorch-cpu")
    run_two = Run(global_batch=4, seq_len=64, precision="fp32", framework="pytorch-cpu")
    one, two = (eager_peak(model, entry, Strategy(micro_batch=2), framework) for entry in (run_one, run_two))
    assert two.total_bytes - one.total_bytes == one.parts["parameters"] == two.parts["gradients"]


def test_what_has_no_walk_is_refused_by_name() -> None:
    framework = load_framework("pytorch-cpu")
    run_one = Run(global_batch=2, seq_len=64, precision="fp32", framework="pytorch-cpu")
    with pytest.raises(InputError, match="tp 2"):
        eager_peak(gpt(64, 2, 2), run_one, Strategy(tp=2, micro_batch=2), framework)
    with pytest.raises(InputError, match="ZeRO stage 1"):
        eager_peak(gpt(64, 2, 2), run_one, Strategy(dp=2, zero=1), framework)
    with pytest.raises(InputError, match="kernels that eager PyTorch does not have"):
        eager_peak(gpt(64, 2, 2), run_one, Strategy(micro_batch=2), load_framework("megatron-core"))
