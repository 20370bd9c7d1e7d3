"""Which words and regions of a batch are distilled: what landmarks place, an aligned teacher sees, a grid covers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laid_out import EYES, ITEMS, POOLED, READERS, WIDTH, distiller_of, draw, lay_out, run, selected_of, terms_of

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.distillation.adapt_objectives import anchor_loss
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.relational import Landmarks, RegionLandmarks, gather_alone, some_of
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import Features
from advl_pipeline.students.interface import StudentOutput


def test_words_that_pretraining_taught_are_landmarks_and_not_distilled() -> None:
    distiller = distiller_of(distance="relational", selection="all", pathway="text")
    output, batch, signal, *rest = lay_out(ITEMS)
    known_NW = (signal.words.form_NW % 2).float()
    frequent_NW = signal.words.form_NW % 7 == 2
    signal = replace(signal, words=replace(signal.words, known_NW=known_NW, frequent_NW=frequent_NW))
    given = (output, batch, signal, *rest)
    selected, text_B = [selected_of(distiller, given)], [terms_of(distiller, given)["text"]]
    draws = torch.Generator().manual_seed(0)
    for name in READERS:
        width = signal.text[name].words_NWD.shape[-1]  # type: ignore[union-attr]
        distiller.landmarks[name] = Landmarks(
            states_KH=torch.randn(5, output.text_states_NLH.shape[-1], generator=draws),
            features_KD=torch.randn(5, width, generator=draws),
            mean_D=torch.randn(width, generator=draws),
        )
    selected, text_B = [*selected, selected_of(distiller, given)], [*text_B, terms_of(distiller, given)["text"]]
    for selected_NW, has_known in zip(selected, (True, False), strict=True):
        assert bool(selected_NW.any())
        assert bool((selected_NW & ((known_NW > 0.5) | frequent_NW)).any()) == has_known
    assert not torch.allclose(*text_B)


def test_regions_that_the_student_names_are_held_and_the_others_are_placed() -> None:
    distiller = distiller_of(distance="relational", pathway="vision", vision_target="regions")
    output, batch, signal, *rest = lay_out(draw(2, (4, 1, 3, 2)))
    assert signal.words is not None
    # Below the fusion all sequences of an example have the same picture.
    first_N = torch.tensor([0] * 4 + [4] + [5] * 3 + [8] * 2)
    visual = output.visual_states_NRH[first_N].clone().requires_grad_()
    batch = replace(batch, visual_mask_NR=batch.visual_mask_NR[first_N], box_index_NR=batch.box_index_NR[first_N])
    output = replace(output, visual_states_NRH=visual)
    draws = torch.Generator().manual_seed(0)
    names = torch.randn(5, visual.shape[-1], generator=draws)
    for name in EYES:
        width = signal.vision[name].regions_BSD.shape[-1]  # type: ignore[union-attr]
        distiller.region_landmarks[name] = RegionLandmarks(
            states_KH=torch.randn(5, visual.shape[-1], generator=draws),
            features_KD=torch.randn(5, width, generator=draws),
            mean_D=torch.randn(width, generator=draws),
            names_NH=names,
            margin=0.2,
        )
    terms = terms_of(distiller, (output, batch, signal, *rest))
    terms["vision"].sum().backward()  # type: ignore[no-untyped-call]
    moved_NR = visual.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    best = torch.nn.functional.cosine_similarity(visual.detach()[:, :, None], names, dim=-1).topk(2, dim=-1).values
    is_known_NR = best[..., 0] - best[..., 1] >= 0.2
    is_region_NR = (batch.box_index_NR >= 0) & batch.visual_mask_NR
    assert bool((is_region_NR & is_known_NR).any())
    assert bool(moved_NR.any())
    assert not bool((moved_NR & ~(is_region_NR & ~is_known_NR)).any())
    # The anchor holds what no teacher places, and nothing else of a picture.
    batch = replace(batch, token_mask_NL=torch.ones(output.text_states_NLH.shape[:2], dtype=torch.bool))
    left = StudentOutput(
        text_states_NLH=output.text_states_NLH, visual_states_NRH=visual.detach(), pooled_NP=output.pooled_NP
    )
    known = distiller.known_regions(left, batch, signal)
    for moved, is_free in ((is_region_NR & ~is_known_NR, True), (is_region_NR & is_known_NR, False)):
        shifted = replace(left, visual_states_NRH=torch.where(moved[..., None], 2 * visual.detach(), visual.detach()))
        assert (float(anchor_loss(shifted, left, batch, signal, known, gather=gather_alone)) == 0.0) == is_free


def test_relations_without_partners_or_features_are_refused() -> None:
    distiller = distiller_of(distance="relational", selection="all", vision_target="regions")
    alike = [replace(i, candidates=[replace(c, forms=[3] * len(c.forms)) for c in i.candidates]) for i in ITEMS]
    with pytest.raises(ConfigError, match="two different content words"):
        run(distiller, alike)
    with torch.inference_mode():
        value_B = run(distiller, alike[1:2])["text"]
    assert not value_B.any(), "a text that is looked at alone has nothing to be related to"
    widths = {"teacher": {"summary": 4}}
    with pytest.raises(ConfigError, match="no features of words"):
        Distiller(DistillationSettings(distance="relational"), widths, hidden_size=WIDTH, pooled_size=POOLED)


def test_an_aligned_teacher_says_what_is_seen_before_the_students_attention_does() -> None:
    distiller = distiller_of(selection="adaptive")
    output, batch, signal, *rest = lay_out(ITEMS)
    by_attention = selected_of(distiller, (output, batch, signal, *rest))
    scribe = signal.text["scribe"]
    num_sequences, _, width = scribe.words_NWD.shape
    picture = Features(values_MD=torch.randn(num_sequences, width, generator=torch.Generator().manual_seed(3)))
    text = {"scribe": replace(scribe, picture=picture), "clerk": signal.text["clerk"]}
    by_towers = selected_of(distiller, (output, batch, replace(signal, text=text), *rest))
    without = replace(output, relevance_NL=None)
    assert not by_towers.equal(by_attention)
    again = selected_of(distiller, (without, batch, replace(signal, text=text), *rest))
    assert again.equal(by_towers)


@pytest.mark.parametrize("distance", ["mse", "relational"])
def test_a_grid_over_tokens_is_distilled_as_boxes_of_one_token_each(distance: str) -> None:
    """Without shares, region s is visual token s: the same as shares that say so."""
    distiller = distiller_of(distance=distance, selection="all", pathway="vision", vision_target="regions")
    output, batch, signal, *rest = lay_out(ITEMS)
    num_visual = output.visual_states_NRH.shape[1]
    generator = torch.Generator().manual_seed(0)
    count = len(batch.num_candidates)

    def with_shares(shares_BSR: torch.Tensor | None) -> torch.Tensor:
        generator.manual_seed(1)
        vision = {
            name: replace(
                one,
                regions=Features(values_MD=torch.randn(count, num_visual, EYES[name][1], generator=generator)),
                region_mask_BS=torch.rand(count, num_visual, generator=generator) < 0.7,
                shares_BSR=shares_BSR,
            )
            for name, one in signal.vision.items()
        }
        given = (output, batch, replace(signal, vision=vision), *rest)
        return terms_of(distiller, given)["vision"]  # type: ignore[arg-type]

    dense_B = with_shares(None)
    torch.testing.assert_close(dense_B, with_shares(torch.eye(num_visual).expand(count, -1, -1)))
    assert bool((dense_B > 0).any())


def test_no_more_regions_are_related_than_the_bound_and_none_that_has_no_target() -> None:
    mask_X = torch.rand(630, generator=torch.Generator().manual_seed(0)) < 0.6
    place_X = torch.nonzero(mask_X)[:, 0]
    generator = torch.Generator().manual_seed(0)
    kept_X = some_of(place_X, 50, generator)
    assert len(kept_X) == 50
    assert bool((kept_X.diff() > 0).all()), "each once, in order"
    assert bool(mask_X[kept_X].all())
    assert not torch.equal(kept_X, some_of(place_X, 50, generator)), "another draw in another step"
    assert torch.equal(some_of(place_X, len(place_X), generator), place_X)
