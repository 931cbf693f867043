#!/usr/bin/env python3
"""This crate's optimiser steps beside PyTorch's: both programs take turns, so that a machine whose speed drifts does the same to both.

    pip install torch diffusers
    python benches/against_torch.py --workload digits --batch 16 --threads 1 --rounds 5

Prints one JSON line: for each kind of step the median over the rounds of (seconds here / seconds in PyTorch), and the median seconds of both.
"""
import argparse, json, pathlib, statistics, subprocess, sys

HERE = pathlib.Path(__file__).resolve().parent
MODELS = {'digits': 'small', 'digits-paper': 'tshirt'}
KINDS = ['plain', 'siss', 'siss_no_is']

parser = argparse.ArgumentParser()
parser.add_argument('--workload', default='digits')
parser.add_argument('--batch', default='16')
parser.add_argument('--threads', default='1')
parser.add_argument('--width')
parser.add_argument('--device', default='flex', help="this crate's device: flex, wgpu or cuda:0; on the two last PyTorch runs on cuda")
parser.add_argument('--bf16', action='store_true', help='networks in bf16 in both')
parser.add_argument('--tf32', action='store_true', help="PyTorch's products in TF32")
parser.add_argument('--rounds', type=int, default=5)
parser.add_argument('--runs', default='3', help='steps of each kind in a round')
parser.add_argument('--clock', default='wall', choices=['wall', 'cpu'], help='cpu: for a machine that others use as well, with one thread')
parser.add_argument('--program', help='the built example step_cost [default: cargo run]')
arguments = parser.parse_args()

common = ['--batch', arguments.batch, '--threads', arguments.threads, '--runs', arguments.runs, '--clock', arguments.clock]
if arguments.width:
    common += ['--width', arguments.width]
if arguments.bf16:
    common += ['--bf16']
cargo = ['cargo', 'run', '--quiet', '--release', '--example', 'step_cost', '--']
here = ([arguments.program] if arguments.program else cargo) + ['--workload', arguments.workload, '--variant', 'plain,siss,siss-exact,siss-no-is']
torch = [sys.executable, str(HERE / 'torch_step.py'), '--model', MODELS.get(arguments.workload, arguments.workload)]
if arguments.device != 'flex':
    here += ['--device', arguments.device]
    torch += ['--device', 'cuda']
if arguments.tf32:
    torch += ['--tf32']


def seconds(command):
    output = subprocess.run(command + common, check=True, capture_output=True, text=True, cwd=HERE.parent)
    return json.loads(output.stdout)


rounds = [(seconds(here), seconds(torch)) for _ in range(arguments.rounds)]
result = {}
for kind in KINDS:
    result[f'{kind}_over_torch'] = round(statistics.median(ours[kind] / theirs[kind] for ours, theirs in rounds), 3)
result['siss_exact_over_torch_siss'] = round(statistics.median(ours['siss_exact'] / theirs['siss'] for ours, theirs in rounds), 3)
for kind in KINDS:
    result[kind] = statistics.median(ours[kind] for ours, _ in rounds)
    result[f'torch_{kind}'] = statistics.median(theirs[kind] for _, theirs in rounds)
result['siss_over_plain'] = statistics.median(ours['siss_over_plain'] for ours, _ in rounds)
result['torch_siss_over_plain'] = statistics.median(theirs['siss_over_plain'] for _, theirs in rounds)
result.update(workload=arguments.workload, batch=int(arguments.batch), threads=int(arguments.threads), clock=arguments.clock, device=arguments.device, bf16=arguments.bf16, tf32=arguments.tf32, rounds=arguments.rounds, torch=rounds[0][1]['torch'])
print(json.dumps(result))
