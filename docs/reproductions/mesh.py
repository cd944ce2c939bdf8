"""4 ranks. mesh_param=(4, 1) with autotp_size 2 averages gradients of different shards; a DeviceMesh raises."""

from tiny import CONFIG, attempt, model, start, tell, train
from torch.distributed.device_mesh import init_device_mesh

config = {**CONFIG, "tensor_parallel": {"autotp_size": 2}}
torch_mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
attempt("a torch DeviceMesh", lambda: start(model(), config, mesh_param=torch_mesh))
engine = attempt("mesh_param=(4, 1)", lambda: start(model(), config, mesh_param=(4, 1)))
off = train(engine, [[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]])
tell(f"3 updates: final norm's weight off by {off:.3f}")
