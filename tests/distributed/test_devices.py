"""Devices, time-outs and the end of an engine, on real ranks."""

from __future__ import annotations


def test_the_engine_says_its_device_and_its_groups_have_the_time_out(world2):
    for found in world2.run("scenarios.devices:choice_and_time_outs"):
        assert found["choice"] == (
            "cpu, sent with gloo: the model is on the CPU, and the process group's backend is cpu (gloo), cuda (gloo)"
        )
        assert found["device"] == "cpu"
        assert found["inherited"]
        assert found["given"]


def test_a_destroyed_engine_frees_its_groups_and_refuses_to_run(world2, tmp_path):
    for found in world2.run("scenarios.devices:destroyed", folder=str(tmp_path)):
        assert not found["written"]
        for call in ("forward", "module", "step", "save", "load", "files"):
            assert "destroy() has freed the process groups" in found[call], call
        assert found["freed"]
        assert found["world"]  # it is the caller's


def test_ranks_that_chose_one_gpu_learn_it_without_a_collective(world2):
    first, second = world2.run("scenarios.devices:exchanged")
    assert first["different"] == ""
    assert "ranks 0, 1 chose the same device" in first["same"]
    assert first["same"] == second["same"]


def test_a_batch_on_another_device_is_one_error_that_names_the_tensor_and_both_devices(world2):
    for found in world2.run("scenarios.devices:batches_elsewhere"):
        for call in ("ids", "module"):
            assert "input_ids on meta, the model on cpu" in found[call], call
            assert found[call].startswith("DeviceError")
        assert found["one rank"].startswith("AgreementError")  # on both: nobody waits
        assert "inputs on another device" in found["one rank"]
        assert "attention_mask on meta" in found["mask"]
        assert found["unread"] == ""
        assert found["in step"]


def test_a_sharded_model_runs_on_the_meta_device_under_a_flop_counter(world2):
    for found in world2.run("scenarios.devices:on_meta"):
        assert 0.4 < found["part"] / found["whole"] < 0.6


def test_a_rank_that_does_not_come_is_named_when_the_time_out_of_the_engine_is_over(world2):
    found, other = world2.run("scenarios.devices:one_rank_stays_away")
    assert found["text"].startswith("AgreementError")
    assert "did not come: rank 1" in found["text"]
    assert 2 < found["seconds"] < 15
    assert found["in step"]
    assert other["in step"]
