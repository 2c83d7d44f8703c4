"""Detectors of every kind: what is sparse, what they start from, what is frozen, what is drawn."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet18
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d

import nmsparsity as nm
from nmsparsity.tasks.detection.backbone import Backbone
from nmsparsity.tasks.detection.detectors import PREDICTORS, Heads, detector, samplers
from nmsparsity.tasks.detection.precision import as_results
from nmsparsity.tasks.detection.sampling import SeededSampler
from nmsparsity.tasks.detection.scaling import small_masks
from nmsparsity.tasks.models import classifier

SMALL = Backbone("small_resnet10", {"width": 8, "stem_stride": 2}, levels=[2, 3, 4])
NARROW = Heads(pyramid=64, box=32, mask=16, mask_layers=2)


def images(count: int = 2) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 44.0]]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    return [torch.rand(3, 64, 64) for _ in range(count)], [dict(target) for _ in range(count)]


def key(model: nn.Module) -> None:
    for sampler in samplers(model):
        sampler.keys = [(0, 1), (0, 2)]


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("backbone", [SMALL, Backbone("resnet18")], ids=["small", "resnet18"])
def test_every_detector_trains_sparse_and_evaluates(name: str, backbone: Backbone) -> None:
    model = detector(name, 2, backbone, NARROW, min_size=64, max_size=64)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    key(model)
    losses = model(*images())
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()
    assert nm.verify(model, "2:4").ok
    reasons = {row.name: row.reason for row in sparsifier.report().rows if row.pattern is None}
    predictors = {f"{its}.weight" for its in PREDICTORS[name]}
    first = "backbone.body.conv1.weight"
    assert set(reasons) == {first, *predictors}
    assert {reasons[its] for its in predictors} == {"a final predictor"}
    (found, _) = model.eval()(images()[0])
    assert found["boxes"].shape[1] == 4
    assert ("masks" in found) == (name == "mask_rcnn")


def test_predictors_can_be_asked_for() -> None:
    model = detector("retinanet", 1, SMALL, NARROW)
    nm.prune(model, "2:4", include=["*cls_logits"])
    assert [row.name for row in nm.verify(model).sparse] == [
        "head.classification_head.cls_logits.weight"
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_backbones_of_torchvision_have_its_names(name: str) -> None:
    with torch.device("meta"):
        model = detector("faster_rcnn", 90, Backbone(name), Heads())
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        body = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d)
        theirs = FasterRCNN(body, 91)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert ours == {key: value.shape for key, value in theirs.state_dict().items()}


def test_a_classifier_of_torchvision_becomes_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = resnet18()
    trained.bn1.running_mean.fill_(0.5)
    torch.save(trained.state_dict(), tmp_path / "resnet18.pth")
    backbone = Backbone("resnet18", init_from=str(tmp_path / "resnet18.pth"))
    model = detector("faster_rcnn", 1, backbone, NARROW)
    backbone.load(model.backbone)
    own = model.backbone.body.state_dict()
    assert own
    for name, value in own.items():
        assert torch.equal(value, trained.state_dict()[name]), name
    norms = [m for m in model.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))]
    assert {type(m) for m in norms} == {FrozenBatchNorm2d}, "torchvision's choice"
    frozen = {n for n, p in model.backbone.body.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"conv1", "layer1"}
    features = model.backbone.body(torch.rand(1, 3, 64, 64))
    trained.eval()
    x = torch.rand(2, 3, 64, 64)
    want = trained.layer1(trained.maxpool(trained.relu(trained.bn1(trained.conv1(x)))))
    assert_close(model.backbone.body(x)["0"], want, rtol=1e-4, atol=1e-5)
    assert len(features) == 4


def test_a_sparse_small_classifier_becomes_the_backbone_and_stays_sparse(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = classifier("small_resnet10", 10, width=8, stem_stride=2)
    nm.prune(trained, "2:4")
    nm.save(trained, tmp_path / "trained.safetensors")
    options = {"width": 8, "stem_stride": 2}
    place = str(tmp_path / "trained.safetensors")
    backbone = Backbone("small_resnet10", options, place, trainable_layers=5, levels=[2, 3, 4])
    model = detector("faster_rcnn", 1, backbone, NARROW)
    backbone.load(model.backbone)
    x = torch.rand(2, 3, 32, 32)
    trained.eval()
    out = torch.relu(trained.bn1(trained.conv1(x)))
    levels = model.backbone.body(x)
    for number, stage in enumerate(trained.stages):
        out = stage(out)
        if number:
            assert_close(levels[str(number - 1)], out, rtol=1e-4, atol=1e-5)
    before = {n: p != 0 for n, p in model.backbone.body.named_parameters() if p.dim() > 1}
    nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), "2:4")
    for name, kept in before.items():
        assert torch.equal(model.backbone.body.get_parameter(name) != 0, kept), "nothing moved"


def test_what_is_frozen_is_reported_and_stays() -> None:
    backbone = Backbone("resnet18", init_from="unused", trainable_layers=2)
    model = detector("faster_rcnn", 1, backbone, NARROW)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    report = nm.sparsify(model, optimizer, "2:4").report()
    left = {row.name for row in report.rows if row.pattern is None}
    assert "backbone.body.layer2.0.conv1.weight" in left
    assert "backbone.body.layer3.0.conv1.weight" not in left


def test_a_file_that_does_not_fit_says_what(tmp_path: Path) -> None:
    torch.save(classifier("small_resnet10", 10, width=16).state_dict(), tmp_path / "wide.pt")
    backbone = Backbone("small_resnet10", {"width": 8}, str(tmp_path / "wide.pt"))
    with pytest.raises(ValueError, match=r"'conv1.weight' is \[16, 3, 3, 3\] in the file, \[8"):
        backbone.load(detector("faster_rcnn", 1, backbone, NARROW).backbone)


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        (Backbone("resnet51"), "did you mean"),
        (Backbone("resnet18", {"width": 8}), "resnet18 has none"),
        (Backbone("resnet18", trainable_layers=3), "random weights would be frozen"),
        (Backbone("resnet18", init_from="x", trainable_layers=6), "has 0 to 5"),
        (Backbone("resnet18", levels=[5]), "has the stages 1 to 4"),
        (Backbone("resnet18", levels=[4, 3, 2]), "want rising numbers, each once"),
        (Backbone("resnet18", levels=[2, 2, 3]), "want rising numbers, each once"),
    ],
)
def test_backbones_that_make_no_sense(backbone: Backbone, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detector("faster_rcnn", 1, backbone, NARROW)


def test_detectors_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="want one of faster_rcnn"):
        detector("yolo", 1, SMALL, NARROW)
    with pytest.raises(ValueError, match="no option 'box_nms'; did you mean 'box_nms_thresh'"):
        detector("faster_rcnn", 1, SMALL, NARROW, box_nms=0.5)
    with pytest.raises(ValueError, match="no option 'num_classes'"):
        detector("faster_rcnn", 1, SMALL, NARROW, num_classes=5)
    with pytest.raises(ValueError, match=r"anchor_sizes \[8\]: want 4"):
        detector("faster_rcnn", 1, SMALL, Heads(32, 32, anchor_sizes=[8]))
    with pytest.raises(ValueError, match="pyramid 32: FCOS"):
        detector("fcos", 1, SMALL, Heads(32))


def test_norms() -> None:
    kinds = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}
    for norm, kind in kinds.items():
        model = detector("fcos", 1, Backbone("resnet18", norm=norm), NARROW)
        found = [m for m in model.backbone.body.modules() if type(m) in kinds.values()]
        assert {type(m) for m in found} == {kind}
        assert len(found) == 19 or len(found) == 20


def test_sizes_are_kept_when_asked() -> None:
    model = detector("faster_rcnn", 1, SMALL, NARROW, min_size=None).eval()
    images_, _ = model.transform([torch.rand(3, 50, 70)])
    assert images_.image_sizes == [(50, 70)]
    model = detector("faster_rcnn", 1, SMALL, NARROW, min_size=100, max_size=120).eval()
    images_, _ = model.transform([torch.rand(3, 50, 70)])
    assert images_.image_sizes == [(85, 120)]


def test_masks_may_stay_small() -> None:
    torch.manual_seed(0)
    model = detector("mask_rcnn", 2, SMALL, NARROW, min_size=64, box_score_thresh=0.0).eval()
    found = [torch.rand(3, 50, 70), torch.rand(3, 64, 64)]
    with torch.no_grad():
        pasted = model(found)
        with small_masks(model):
            small = model(found)
        again = model(found)
    assert [its["masks"].shape[2:] for its in again] == [(50, 70), (64, 64)]
    for whole, its in zip(pasted, small, strict=True):
        assert its["small_masks"].shape == (len(whole["boxes"]), 1, 28, 28)
        results = as_results(its, 7, [3, 5])
        assert len(results) > 3
        assert results == as_results(whole, 7, [3, 5])


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_proposals_are_those_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    few = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 30}
    model = detector(name, 2, SMALL, NARROW, min_size=64, box_score_thresh=0.0, **few).eval()
    for part in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        torch.nn.init.normal_(part.weight, std=0.3)
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    theirs.rpn.__class__ = RegionProposalNetwork
    assert type(ours.rpn) is not RegionProposalNetwork
    decoded = []
    for its in (ours, theirs):
        decode = its.rpn.box_coder.decode
        its.rpn.box_coder.decode = lambda codes, boxes, decode=decode: (
            decoded.append(len(codes)) or decode(codes, boxes)
        )
    with torch.no_grad():
        images_ = [torch.rand(3, 50, 70), torch.rand(3, 96, 64)]
        found = [its(images_) for its in (ours, theirs)]
    assert decoded[-2] < decoded[-1] / 2
    for one, other in zip(*found, strict=True):
        assert len(one["boxes"]) > 5
        assert_close(one, other, rtol=0, atol=0)


def test_the_sampler_draws_as_torchvisions_does_and_repeatably() -> None:
    torch.manual_seed(0)
    matched = [torch.randint(-1, 3, (300,)), torch.zeros(20, dtype=torch.int64)]
    matched[0][:250] = matched[0][:250].clamp(max=0)
    sampler = SeededSampler(64, 0.25)
    sampler.keys = [(1, 2), (1, 3)]
    drawn = sampler(matched)
    theirs = BalancedPositiveNegativeSampler(64, 0.25)(matched)
    for ours, other in zip((*drawn[0], *drawn[1]), (*theirs[0], *theirs[1]), strict=True):
        assert int(ours.sum()) == int(other.sum())
    assert (matched[0][drawn[0][0]] > 0).all()
    assert (matched[0][drawn[1][0]] == 0).all()
    again = sampler(matched)
    assert_close(again, drawn, rtol=0, atol=0)
    sampler.keys = [(1, 4), (1, 3)]
    other = sampler(matched)
    assert not torch.equal(other[1][0], drawn[1][0])
    with pytest.raises(ValueError, match="2 keys for 1 images"):
        sampler(matched[:1])


def test_what_a_module_names_is_dense_by_default() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    inner.dense_by_default = {"0": "it is a test"}
    model = nn.Sequential(inner, nn.ReLU(), nn.Linear(8, 3))
    report = nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), "2:4").report()
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["0.0.weight"] == "it is a test"
    assert [row.name for row in report.sparse] == ["0.2.weight"]


def test_the_narrowest_fcos_takes_the_smallest_images() -> None:
    model = detector("fcos", 1, SMALL, Heads(64), min_size=32).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 1, 1)])
    assert found["boxes"].shape[1] == 4


def test_stages_above_the_last_level_are_not_built(tmp_path: Path) -> None:
    """Weights without a gradient stop a training on several processes."""
    torch.manual_seed(0)
    options = {"width": 8, "stem_stride": 2}
    trained = classifier("small_resnet10", 10, **options)
    nm.save(trained, tmp_path / "trained.safetensors")
    place = str(tmp_path / "trained.safetensors")
    backbone = Backbone("small_resnet10", options, place, trainable_layers=5, levels=[2, 3])
    model = detector("faster_rcnn", 2, backbone, Heads(16, 32))
    backbone.load(model.backbone)
    assert torch.equal(
        model.backbone.body.stages[2][0].conv1.weight, trained.stages[2][0].conv1.weight
    )
    key(model)
    sum(model(*images()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_deeper_classifier_is_no_backbone(tmp_path: Path) -> None:
    nm.save(classifier("small_resnet20", 10, width=8), tmp_path / "deep.safetensors")
    place = str(tmp_path / "deep.safetensors")
    backbone = Backbone("small_resnet8", {"width": 8}, place, trainable_layers=4, levels=[1, 2, 3])
    model = detector("faster_rcnn", 2, backbone, Heads(16, 32))
    with pytest.raises(ValueError, match=r"stages\.0\.1"):
        backbone.load(model.backbone)


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (2, 2000)])
def test_an_image_thinner_than_a_pixel(shape: tuple[int, int]) -> None:
    model = detector("faster_rcnn", 2, SMALL, Heads(16, 32), min_size=64, max_size=96).eval()
    (found,) = model([torch.rand(3, *shape)])
    assert found["boxes"].shape[1] == 4
    assert (found["boxes"] <= torch.tensor([shape[1], shape[0]] * 2)).all()
    kept = detector("faster_rcnn", 2, SMALL, Heads(16, 32), min_size=None).eval().transform
    assert kept([torch.rand(3, *shape)])[0].image_sizes == [shape]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pyramid": 0}, "heads.pyramid 0: want 1 or more"),
        ({"mask_layers": 0}, "heads.mask_layers 0: want 1 or more"),
        ({"anchor_sizes": [0, 8, 16]}, "heads.anchor_sizes .*want sizes of 1"),
    ],
)
def test_heads_of_nothing(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Heads(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [0, -3])
def test_a_detector_that_may_find_nothing(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_detections {most}: want 1 or more"):
        detector("fcos", 2, SMALL, NARROW, max_detections=most)
