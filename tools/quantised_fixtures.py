#!/usr/bin/env python3
"""Writes tests/fixtures/hf-quantised: tiny random models, quantised and packed by the libraries of their formats.

A folder holds `config.json` and `model.safetensors` as the library writes them, and `expected.safetensors`: `input_ids`,
`logits` and `greedy_from_first_32` of transformers' model in f32 with the weights that the library dequantises to (with
scales in f32, so that nothing is rounded to 16 bits), and for each quantised matrix a checksum of every row of these
(`rows.NAME`: the sum over the row of the bits of element `j` times `MIX ** (j + 1)`, modulo 2 ** 64).

Needs Python 3.11 and, in an environment of their own:

    pip install torch==2.8.0 transformers==4.57.6 compressed-tensors==0.15.0.1 safetensors==0.8.0 accelerate==1.10.0 \\
        datasets==4.0.0 pillow zstandard logbar==0.0.4 tokenicer==0.0.4 device-smi==0.4.1 threadpoolctl setuptools wheel
    BUILD_CUDA_EXT=0 pip install --no-deps --no-build-isolation --no-binary gptqmodel,autoawq gptqmodel==4.2.5 autoawq==0.2.9

The last two are used for their packing and dequantisation in plain PyTorch; no GPU is needed.
"""

import json
import pathlib
import shutil

import numpy
import torch
import transformers
import transformers.activations
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file
from transformers import AwqConfig, FineGrainedFP8Config, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

# AutoAWQ imports this name of older transformers, and does not use it here.
transformers.activations.PytorchGELUTanh = transformers.activations.GELUTanh
from awq.modules.linear.gemm import WQLinear_GEMM  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402

MIX = 0x9E3779B97F4A7C15
FOLDER = pathlib.Path(__file__).parent.parent / "tests/fixtures/hf-quantised"
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def base(seed, family="llama", layers=2, tied=True):
    """A random model in f32 whose numbers are all bfloat16 numbers."""
    torch.manual_seed(seed)
    config = CONFIGS[family](
        vocab_size=128, hidden_size=128, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, tie_word_embeddings=tied, dtype="bfloat16",
        bos_token_id=1, eos_token_id=2,
    )
    config.architectures = [config.model_type.capitalize() + "ForCausalLM"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            else:
                # A few inputs weigh more, so that an order by activations has a reason and groups differ.
                scale = 0.2 if name.endswith("bias") or "embed" in name else parameter.shape[-1] ** -0.5
                parameter.copy_(scale * torch.randn_like(parameter))
                parameter *= 1 + 2 * (torch.rand(parameter.shape[-1]) < 0.1)
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
    return model


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def plain(model, but=()):
    """The parameters as stored, without the weights of these modules."""
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return {name: tensor for name, tensor in tensors.items() if name.removesuffix(".weight") not in but}


def write(name, model, tensors, dequantised, quantization_config=None, compressor=None):
    """Writes a fixture; `model` is left with the dequantised weights."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    if compressor:
        compressor.update_config(folder)
    else:
        file = folder / "config.json"
        config = json.loads(file.read_text()) | {"quantization_config": quantization_config}
        file.write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")

    expected = {}
    modules = dict(model.named_modules())
    for module, weight in dequantised.items():
        assert weight.dtype == torch.float32 and weight.shape == modules[module].weight.shape, module
        modules[module].weight = torch.nn.Parameter(weight.clone())
        bits = weight.contiguous().numpy().view(numpy.uint32).astype(numpy.uint64)
        powers = numpy.cumprod(numpy.full(bits.shape[1], MIX, dtype=numpy.uint64))
        expected[f"rows.{module}.weight"] = torch.from_numpy((bits * powers).sum(axis=1).view(numpy.int64))
    ids = torch.randint(3, model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected["input_ids"] = ids[0]
        expected["logits"] = model(ids).logits[0].to(torch.float32)
        greedy = ids[:, :32]
        for _ in range(12):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], dim=1)
        expected["greedy_from_first_32"] = greedy[0, 32:]
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    print(name, sum(file.stat().st_size for file in folder.iterdir()))


def extremes(weight, args):
    """Least and largest number of each scale's weights, in the shape of the scales."""
    rows, cols = weight.shape
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    high, wide = {"channel": (1, cols), "group": (1, args.group_size), "block": args.block_structure}[args.strategy]
    blocks = weight.reshape(rows // high, high, cols // wide, wide)
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def compressed(name, seed, groups, ignore=(), kv_cache=None, **of_base):
    """compressed-tensors: `groups` are targets, weights' arguments, and the rest of the scheme."""
    model, original = base(seed, **of_base).to(torch.bfloat16), base(seed, **of_base)
    schemes = {
        f"group_{at}": QuantizationScheme(targets=targets, weights=QuantizationArgs(**weights), **rest)
        for at, (targets, weights, rest) in enumerate(groups)
    }
    apply_quantization_config(
        model, QuantizationConfig(config_groups=schemes, ignore=list(ignore), kv_cache_scheme=kv_cache)
    )
    modules = {name: module for name, module in model.named_modules() if getattr(module, "quantization_scheme", None)}
    modules = {name: module for name, module in modules.items() if hasattr(module, "weight_scale")}
    for parameter, tensor in model.named_parameters():
        if parameter.endswith(("input_scale", "k_scale", "v_scale", "output_scale")):
            tensor.data.fill_(0.25)
    for module in modules.values():
        args, weight = module.quantization_scheme.weights, module.weight.data.to(torch.float32)
        if args.actorder == "group":
            order = torch.argsort(weight.abs().sum(0), descending=True)
            module.weight_g_idx.data[order] = (torch.arange(len(order)) // args.group_size).to(torch.int32)
            weight = weight[:, order]
        scale, zero = calculate_qparams(*extremes(weight, args), args)
        module.weight_scale.data.copy_(scale)
        module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    dequantised = {}
    for path, module in modules.items():
        state = {part: tensor.detach() for part, tensor in module.state_dict().items()}
        state["weight_scale"] = state["weight_scale"].to(torch.float32)
        scheme = module.quantization_scheme
        dequantised[path] = BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]
    tensors = {path: tensor.detach() for path, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    write(name, original, tensors, dequantised, compressor=compressor)


def gptq(name, seed, config, order=False, skip=lambda name: False, with_bias=False, **of_base):
    """GPTQModel's packing, into the format that its configuration names."""
    model = base(seed, **of_base)
    quantised = {path: module for path, module in linears(model).items() if path != "lm_head" and not skip(path)}
    tensors, dequantised = plain(model, quantised), {}
    for path, module in quantised.items():
        bits = config.dynamic_get(path, "bits", config.bits)
        group = config.dynamic_get(path, "group_size", config.group_size)
        rows, cols = module.weight.shape
        group = cols if group == -1 else group
        groups = (torch.arange(cols) // group).to(torch.int32)
        if order:
            permutation = torch.argsort(module.weight.abs().sum(0), descending=True)
            groups[permutation] = groups.clone()
        # What GPTQ's own loop leaves for packing: weights that lie on the grid.
        weight, largest = module.weight.data, 2**bits - 1
        scale, zero = torch.zeros(rows, cols // group), torch.zeros(rows, cols // group)
        for at in range(cols // group):
            part = weight[:, groups == at]
            least, most = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            if config.sym:
                most = torch.maximum(-least, most)
                scale[:, at], zero[:, at] = 2 * most / largest, (largest + 1) / 2
            else:
                scale[:, at] = (most - least) / largest
                zero[:, at] = torch.round(-least / scale[:, at])
        of = groups.long()
        codes = torch.clamp(torch.round(weight / scale[:, of]) + zero[:, of], 0, largest)
        linear = torch.nn.Linear(cols, rows, bias=with_bias or module.bias is not None)
        linear.weight.data = (codes - zero[:, of]) * scale[:, of]
        if linear.bias is not None:
            linear.bias.data = torch.zeros(rows) if module.bias is None else module.bias.data.clone()
            tensors.pop(f"{path}.bias", None)
        packed = TorchQuantLinear(
            bits=bits, group_size=group, sym=config.sym, desc_act=config.desc_act, in_features=cols, out_features=rows,
            bias=linear.bias is not None, pack_dtype=torch.int32,
        )
        packed.optimize = lambda *_, **__: None
        packed.pack(linear, scale, zero, groups)
        stored = {part: tensor.clone() for part, tensor in packed.state_dict().items()}
        packed.post_init()
        packed.scales = packed.scales.to(torch.float32)
        dequantised[path] = packed.dequantize_weight().T.contiguous()
        if config.format == "gptq":
            packed.qzeros = stored["qzeros"].clone()
            convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits, group_size=128))
            stored["qzeros"] = packed.qzeros.data
        tensors |= {f"{path}.{part}": tensor for part, tensor in stored.items()}
    write(name, model, tensors, dequantised, quantization_config=config.to_dict())


def awq(name, seed, group, skip=None, **of_base):
    """AutoAWQ's packing of weights whose groups have a scale and a zero point."""
    model = base(seed, **of_base)
    quantised = {
        path: module for path, module in linears(model).items() if path != "lm_head" and not (skip and skip in path)
    }
    tensors, dequantised = plain(model, quantised), {}
    for path, module in quantised.items():
        rows, cols = module.weight.shape
        size = cols if group == -1 else group
        blocks = module.weight.data.reshape(rows, cols // size, size)
        least, most = blocks.amin(2), blocks.amax(2)
        scale = ((most - least).clamp(min=1e-5) / 15).half().float()
        zero = (-torch.round(least / scale)).clamp(0, 15)
        codes = torch.clamp(torch.round(blocks / scale[..., None]) + zero[..., None], 0, 15)
        linear = torch.nn.Linear(cols, rows, bias=module.bias is not None)
        linear.weight.data = ((codes - zero[..., None]) * scale[..., None]).reshape(rows, cols)
        if module.bias is not None:
            linear.bias.data = module.bias.data.clone()
            tensors.pop(f"{path}.bias")
        packed = WQLinear_GEMM.from_linear(linear, 4, size, scales=scale.T.contiguous(), zeros=zero.T.contiguous())
        weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, size)
        dequantised[path] = weight.T.contiguous()
        tensors |= {f"{path}.{part}": tensor for part, tensor in packed.state_dict().items()}
    config = AwqConfig(bits=4, group_size=group, version="gemm", modules_to_not_convert=[skip] if skip else None)
    write(name, model, tensors, dequantised, quantization_config=config.to_dict())


def block_fp8(name, seed, block, **of_base):
    """transformers' own quantisation to fp8 with a scale for each block."""
    model = base(seed, **of_base)
    # Shallow copies do not do: the modules are replaced.
    target = base(seed, **of_base)
    config = FineGrainedFP8Config(weight_block_size=block, modules_to_not_convert=["lm_head"])
    quantizer = FineGrainedFP8HfQuantizer(config)
    target = replace_with_fp8_linear(target, modules_to_not_convert=["lm_head"], quantization_config=config)
    quantizer.pre_quantized = False
    tensors, dequantised = plain(model, [path for path in linears(model) if path != "lm_head"]), {}
    for path, module in linears(model).items():
        if path == "lm_head":
            continue
        quantizer.create_quantized_param(target, module.weight.data, f"{path}.weight", "cpu")
        packed = target.get_submodule(path)
        tensors[f"{path}.weight"], tensors[f"{path}.weight_scale_inv"] = packed.weight.data, packed.weight_scale_inv.data
        scale = packed.weight_scale_inv.data.to(torch.float32)
        full = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        dequantised[path] = packed.weight.data.to(torch.float32) * full
    write(name, model, tensors, dequantised, quantization_config=config.to_dict())


def main():
    int4 = dict(num_bits=4, type="int")
    int8 = dict(num_bits=8, type="int")
    fp8 = dict(num_bits=8, type="float")
    tokens = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    static = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
    every = ["Linear"]
    compressed("ct-int4-group", 1, [(every, int4 | dict(strategy="group", group_size=32), {})], ["lm_head"])
    compressed(
        "ct-int4-group-asymmetric-with-head", 2,
        [(every, int4 | dict(strategy="group", group_size=64, symmetric=False), {})], layers=1, tied=False,
    )
    compressed("ct-int4-channel", 3, [(every, int4 | dict(strategy="channel"), {})], ["lm_head"], layers=1)
    compressed(
        "ct-int4-act-order", 4,
        [(every, int4 | dict(strategy="group", group_size=32, actorder="group"), {})], ["lm_head"], layers=1,
    )
    compressed(
        "ct-int8-packed-asymmetric", 5,
        [(every, int8 | dict(strategy="channel", symmetric=False), {})], ["re:.*lm_head"], layers=1,
    )
    compressed(
        "ct-int8-channel", 6,
        [(every, int8 | dict(strategy="channel"), dict(input_activations=tokens))], ["lm_head"], layers=1,
    )
    compressed(
        "ct-fp8-tensor", 7, [(every, fp8 | dict(strategy="tensor"), dict(input_activations=static))], ["lm_head"],
        kv_cache=static, layers=1,
    )
    compressed(
        "ct-fp8-channel", 8,
        [(every, fp8 | dict(strategy="channel"), dict(input_activations=QuantizationArgs(**fp8, strategy="token", dynamic=True)))],
        ["lm_head"], layers=1,
    )
    compressed(
        "ct-fp8-block", 9,
        [(every, fp8 | dict(strategy="block", block_structure=[32, 64]), dict(input_activations=QuantizationArgs(**fp8, strategy="group", group_size=64, dynamic=True)))],
        ["lm_head"], layers=1,
    )
    compressed(
        "ct-mixed", 10,
        [
            (["re:.*self_attn\\.[qkv]_proj$"], int4 | dict(strategy="group", group_size=32), {}),
            (["re:.*down_proj$"], int8 | dict(strategy="channel"), dict(input_activations=tokens)),
            (["model.layers.0.mlp.up_proj"], int4 | dict(strategy="group", group_size=128, symmetric=False), {}),
        ],
    )
    block_fp8("fp8-block", 11, (32, 64), family="qwen3", layers=1)
    gptq("gptq-v1", 12, QuantizeConfig(bits=4, group_size=32, desc_act=False, sym=True, format="gptq"), with_bias=True)
    gptq(
        "gptq-v2-act-order", 13,
        QuantizeConfig(bits=4, group_size=32, desc_act=True, sym=False, format="gptq_v2"), order=True, layers=1,
    )
    gptq(
        "gptq-dynamic", 14,
        QuantizeConfig(
            bits=8, group_size=-1, desc_act=False, sym=False, format="gptq",
            dynamic={"-:.*\\.k_proj": {}, "+:.*\\.up_proj": {"bits": 4, "group_size": 64}},
        ),
        skip=lambda path: path.endswith("k_proj"), family="qwen2", layers=1,
    )
    awq("awq", 15, 32)
    awq("awq-skipping", 16, -1, skip="v_proj", family="qwen2", layers=1, tied=False)


if __name__ == "__main__":
    main()
