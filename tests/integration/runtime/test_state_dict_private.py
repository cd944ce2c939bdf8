"""Every private name of torch's state dicts that the runtime leans on exists and behaves as expected, by its name."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import default_planner, metadata, planner_helpers, utils
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from tpinit.runtime.internals import state_dict_private
from tpinit.runtime.training.local_shards import ShardLayout, mark

PLACE = ShardLayout((4, 3), 0, ((1, 1), (3, 1)))
SHARD = mark(torch.arange(6.0).view(2, 3), PLACE)


def write_items():
    items = planner_helpers._create_write_items("w", SHARD)
    assert [tuple(item.index.offset) for item in items] == [(1, 0), (3, 0)]
    assert items[0].tensor_data.size == torch.Size((4, 3))


def chunks():
    assert [tuple(chunk.offsets) for chunk in planner_helpers._create_chunk_list(SHARD)] == [(1, 0), (3, 0)]


def pieces():
    piece = utils.find_tensor_shard(SHARD, metadata.MetadataIndex("w", torch.Size((3, 0))))
    assert piece.tolist() == [[3.0, 4.0, 5.0]]
    with pytest.raises(ValueError, match="no piece at offset"):
        utils.find_tensor_shard(SHARD, metadata.MetadataIndex("w", torch.Size((0, 0))))


def compared_sizes():
    properties = metadata.TensorProperties.create_from_tensor(torch.zeros(1))
    stored = metadata.TensorStorageMetadata(
        properties, torch.Size((4, 3)), [metadata.ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((4, 3)))]
    )
    plan = default_planner.create_default_local_load_plan({"w": SHARD}, metadata.Metadata({"w": stored}))
    assert len(plan.items) == 2
    assert SHARD.size() == (2, 3)
    with pytest.raises(ValueError, match="Size mismatch"):
        default_planner.create_default_local_load_plan({"w": torch.zeros(2, 3)}, metadata.Metadata({"w": stored}))


def full_state_dicts():
    class Asked(nn.Linear):
        def state_dict(self, *args, **kwargs):
            answers.append(state_dict_private.wants_full_state_dict())
            return super().state_dict(*args, **kwargs)

    answers = []
    model = Asked(2, 2)
    model.state_dict()
    get_model_state_dict(model)
    get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert answers == [False, False, True]


def optimizer_states():
    answers = []
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_state_dict_post_hook(lambda *_: answers.append(state_dict_private.wants_full_state_dict()))
    optimizer.state_dict()
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    assert answers == [False, True]


def versions():
    state = nn.BatchNorm1d(2).state_dict()
    assert state_dict_private.state_metadata(state)[""]["version"] == 2
    copied = state_dict_private.with_metadata(state)
    assert copied._metadata is state._metadata
    assert state_dict_private.state_metadata(dict(state)) == {}


def places():
    place = state_dict_private.place_in_file("__0_0.distcp", 3, 5)
    assert (place.relative_path, place.offset, place.length) == ("__0_0.distcp", 3, 5)
    assert not place.transform_descriptors


def schedule():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def last_rates():
    made = schedule()
    assert made.state_dict()[state_dict_private.LAST_RATES] == [0.1]
    made.optimizer.step()
    made.step()
    assert made.state_dict()[state_dict_private.LAST_RATES] == [0.05]


def bookkeeping():
    plain, changed = schedule(), schedule()
    assert plain.state_dict()[state_dict_private.SCHEDULE_STEPS] == 1
    for key in state_dict_private.SCHEDULE_BOOKKEEPING:
        assert (key in plain.state_dict()) == (key != "verbose")
    changed.load_state_dict({state_dict_private.SCHEDULE_STEPS: 7})
    for made in (plain, changed):
        made.optimizer.step()
        made.step()
    assert plain.get_last_lr() == changed.get_last_lr() == [0.05]


CHECKS = {
    "Tensor.__create_write_items__": write_items,
    "Tensor.__create_chunk_list__": chunks,
    "Tensor.__get_tensor_shard__": pieces,
    "create_default_local_load_plan": compared_sizes,
    "_get_model_state_dict(model, info)": full_state_dicts,
    "_get_optim_state_dict(model, optimizers, info)": optimizer_states,
    "state_dict()._metadata": versions,
    "filesystem._StorageInfo": places,
    "LRScheduler._last_lr": last_rates,
    "LRScheduler._step_count": bookkeeping,
    "LRScheduler._get_lr_called_within_step": bookkeeping,
    "LRScheduler._is_initial": bookkeeping,
}


def test_every_private_name_of_state_dicts_has_a_check():
    assert list(CHECKS) == list(state_dict_private.PRIVATE_NAMES)


@pytest.mark.parametrize("name", CHECKS)
def test_a_private_name_of_state_dicts_does_what_the_runtime_takes_it_to_do(name):
    CHECKS[name]()
