"""The two ways to play a game show the same; the scripted players play; what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.align.atari.demonstrations import record_demonstrations
from alignlab.align.atari.environments import AtariGames
from alignlab.align.atari.games import GAMES, OneGame, area_weights, hidden_rows, named
from alignlab.align.atari.players import BOXING, PLAYERS, reflected
from alignlab.core.errors import ConfigError

pytest.importorskip("ale_py")


def test_one_copy_is_seen_as_the_many_are() -> None:
    """Same actions from the same beginning: the preprocessing of ale-py against ours, within the rounding of a grey."""
    many, one = AtariGames("boxing", 2, seed=0, threads=1, size=42), OneGame("boxing", size=42)
    many._games = __import__("ale_py").AtariVectorEnv(
        "boxing", 2, num_threads=1, stack_num=1, img_height=42, img_width=42, reward_clipping=False, noop_max=1,
        use_fire_reset=False, autoreset_mode="SameStep",
    )  # fmt: skip
    assert np.abs(many.reset()[0].astype(int) - one.reset().astype(int)).max() <= 1
    rng, total = np.random.default_rng(0), [0.0, 0.0]
    for _ in range(60):
        action = int(rng.integers(one.actions))
        step, (frame, reward, _) = many.step(np.array([action, action])), one.step(action)
        assert np.abs(step.frames[0].astype(int) - frame.astype(int)).max() <= 1
        total = [total[0] + float(step.rewards[0]), total[1] + reward]
    assert total[0] == total[1]
    assert not step.frames[:, : hidden_rows(GAMES["boxing"], 42)].any()


def test_weights_of_areas() -> None:
    assert area_weights(4, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert area_weights(3, 2) == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))


def test_episodes_are_cut_and_begin_anew() -> None:
    games = AtariGames("pong", 3, seed=1, threads=1, size=36, most_steps=4)
    games.reset()
    ends = [games.step(np.zeros(3, dtype=np.int64)).ends.tolist() for _ in range(8)]
    assert ends == 3 * [3 * [False]] + [3 * [True]] + 3 * [3 * [False]] + [3 * [True]]


def test_same_seed_same_games() -> None:
    frames = []
    for _ in range(2):
        games = AtariGames("breakout", 2, seed=3, threads=1, size=36)
        games.reset()
        frames.append([games.step(np.array([1, 2])).frames for _ in range(5)])
    assert np.array_equal(frames[0], frames[1])


@pytest.mark.parametrize("game", list(PLAYERS))
def test_demonstrations_are_whole(game: str) -> None:
    shown = record_demonstrations(game, steps=70, slips=0.2, seed=1, size=36, most_steps=40)
    assert len(shown) == 70
    assert np.flatnonzero(shown.ends).tolist() == [39, 69]
    assert len(shown.returns) == 2
    again = record_demonstrations(game, steps=70, slips=0.2, seed=1, size=36, most_steps=40)
    assert np.array_equal(shown.actions, again.actions)
    assert np.array_equal(shown.frames, again.frames)


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("boxing", 15), ("breakout", 10)])
def test_the_scripted_players_know_their_game(game: str, least: int) -> None:
    shown = record_demonstrations(game, steps=1000, slips=0.1, seed=0, size=36)
    assert shown.rewards.sum() >= least


def test_boxing_has_its_eighteen_actions_in_order() -> None:
    import ale_py

    words = {(-1, 0): "UP", (1, 0): "DOWN", (0, 1): "RIGHT", (0, -1): "LEFT", (0, 0): ""}
    names = []
    for down, right, fire in BOXING:
        place = words.get((down, right)) if not (down and right) else words[down, 0] + words[0, right]
        names.append((place or "") + ("FIRE" if fire else "") or "NOOP")
    assert names == [ale_py.Action(i).name for i in range(18)]


def test_a_ball_is_reflected() -> None:
    assert [reflected(x, (10, 20)) for x in (12, 22, 8, 33)] == [12, 18, 12, 13]


def test_unknown_game() -> None:
    with pytest.raises(ConfigError, match="game is 'chess', allowed: boxing or breakout or pong"):
        named("chess")
