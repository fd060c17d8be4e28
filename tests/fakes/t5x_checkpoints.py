"""T5X checkpoints of small decoders, written by the documented format: what T5X itself leaves on a disk."""

import json
import pathlib

import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts


def make_decoder(config, gated=True, tied=False, seed=0, dtype=np.float32):
    """`{"decoder": {...}}`, nested as Flax names it: kernels with joined heads, a layer after the other."""
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return (0.3 * generator.standard_normal(shape)).astype(dtype)

    def kernel(*shape):
        return {"kernel": normal(*shape)}

    c, joined = config, config.num_heads * config.head_dim
    kv = c.num_kv_heads * c.head_dim
    decoder = {"decoder_norm": {"scale": 1 + normal(c.embed_dim)}}
    decoder["token_embedder"] = {"embedding": normal(c.vocab_size, c.embed_dim)}
    if not tied:
        decoder["logits_dense"] = kernel(c.embed_dim, c.vocab_size)
    for layer in range(c.num_layers):
        decoder[f"layers_{layer}"] = {
            "pre_self_attention_layer_norm": {"scale": 1 + normal(c.embed_dim)},
            "self_attention": {
                "query": kernel(c.embed_dim, joined),
                "key": kernel(c.embed_dim, kv),
                "value": kernel(c.embed_dim, kv),
                "out": kernel(joined, c.embed_dim),
            },
            "pre_mlp_layer_norm": {"scale": 1 + normal(c.embed_dim)},
            "mlp": {
                **({name: kernel(c.embed_dim, c.mlp_dim) for name in (("wi_0", "wi_1") if gated else ("wi",))}),
                "wo": kernel(c.mlp_dim, c.embed_dim),
            },
        }
    return {"decoder": decoder}


def scan(target, axis=1):
    """The same parameters as a scan over layers leaves them."""
    decoder = {name: node for name, node in target["decoder"].items() if not name.startswith("layers_")}
    layers = [target["decoder"][f"layers_{i}"] for i in range(len(target["decoder"]) - len(decoder))]

    def stack(*nodes):
        if isinstance(nodes[0], dict):
            return {name: stack(*(node[name] for node in nodes)) for name in nodes[0]}
        return np.stack(nodes, axis)

    return {"decoder": {**decoder, "decoder": stack(*layers)}}


def flatten(tree, prefix=""):
    """`{"a.b": leaf}`."""
    flat = {}
    for name, node in tree.items():
        path = f"{prefix}.{name}" if prefix else name
        flat.update(flatten(node, path) if isinstance(node, dict) else {path: node})
    return flat


def write_legacy(directory, target, *, version=3, driver="gfile", old_path=False, inline=(), chunked=(), step=7):
    """`checkpoint` and an array of zarr for each parameter but those whose names are in `inline` or `chunked`."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)

    def place(node, name):
        if isinstance(node, dict):
            return {key: place(child, f"{name}.{key}") for key, child in node.items()}
        if name in chunked:
            return _in_chunks(node)
        return node if name in inline else _write_array(directory, name, node, version, driver, old_path)

    moments = {"decoder": {"decoder_norm": {"scale": {"v": np.zeros(4, np.float32), "m": np.zeros(1, np.float32)}}}}
    tree = {"target": place(target, "target"), "state": {"step": np.int32(step), "param_states": moments}}
    content = {"version": version, "optimizer": tree} if version else tree
    (directory / "checkpoint").write_bytes(msgpack.packb(content, default=_pack, strict_types=True))


def _write_array(directory, name, array, version, driver, old_path):
    stored = array.view(np.uint16) if version == 2 and array.dtype == ml_dtypes.bfloat16 else array
    dtype = "bfloat16" if stored.dtype == ml_dtypes.bfloat16 else stored.dtype.str
    chunks = [max(1, size // 2) if axis == 0 else size for axis, size in enumerate(array.shape)]
    metadata = {"chunks": chunks, "compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape)}
    kvstore = {"driver": "file", "path": f"{directory}/{name}/"}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": {**metadata, "dtype": dtype}}
    ts.open(spec, create=True).result().write(stored).result()
    kept = {"driver": "zarr", "dtype": stored.dtype.name, "kvstore": {"driver": driver}, "metadata": metadata}
    if driver == "gcs":
        kept["kvstore"]["bucket"] = "t5x-dummy-bucket"
    (kept if old_path else kept["kvstore"])["path"] = f"{name}/"
    return kept


def _in_chunks(array, size=5):
    flat = array.reshape(-1)
    chunks = [flat[start : start + size] for start in range(0, flat.size, size)]
    as_dict = [{str(index): value for index, value in enumerate(values)} for values in (array.shape, chunks)]
    return {"__msgpack_chunked_array__": True, "shape": as_dict[0], "chunks": as_dict[1]}


def _pack(value):
    """Flax's extension types."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        content = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        return msgpack.ExtType(1 if isinstance(value, np.ndarray) else 3, content)
    if isinstance(value, complex):
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
    if isinstance(value, tuple):  # What strict_types does not take for a list.
        return list(value)
    raise TypeError(type(value))


def write_orbax(directory, target, use_ocdbt=True, step=7):
    """Orbax's form: every leaf an array, under `state`."""
    tree = {"target": target, "state": {"step": np.array(step, np.int32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as checkpointer:
        checkpointer.save(pathlib.Path(directory) / "state", ocp.args.PyTreeSave(tree))


def write_placeholders(directory, target):
    """Older Orbax: a tree of strings beside bare arrays."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    for name, array in flatten({"_optimizer": {"target": target}}).items():
        _write_array(directory, name, array, 3, "file", False)

    def name_leaves(node, prefix):
        if isinstance(node, dict):
            return {key: name_leaves(child, f"{prefix}.{key}") for key, child in node.items()}
        return f"PLACEHOLDER://{prefix.removeprefix('.')}"

    (directory / "checkpoint").write_bytes(msgpack.packb(name_leaves({"_optimizer": {"target": target}}, "")))


def spoil_json(path, change):
    """Changes a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
