"""Planted faults in the CUDA kernels: the kernels' own tests have to notice every one of them.

Every row of `MUTANTS` changes one place of a source file in a copy of it. All changes that are
statements or expressions are compiled into one program per test, which THALWEG_MUTANT tells which
of them to make; without it the program is the product. The rest are compiled one by one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from mutants import CSRC, SWITCH_HEADER, Mutant, planted

PROGRAMS = ROOT / "tests" / "cpp" / "cuda"
SEEDS = range(4)  # 0: in order, copies and streams as late as possible
NUMBERS = r"^FAIL "
FLAGS = ["-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fno-math-errno", "-DTW_CUDA_EMULATED"]
FLAGS += ["-DTW_WITH_CUDA=1"]


@dataclass(frozen=True, kw_only=True)
class KernelMutant(Mutant):
    """A fault in a kernel, `fault` one of FAULTS, that the kernel's test has to notice."""

    program: str  # tests/cpp/cuda/<program>.cu
    caught: str = NUMBERS  # pattern in what the program prints


# The faults that kernels are known for, and that the emulator can see.
FAULTS = {
    "wrong reduction": "a part of a sum is missing, or counts twice",
    "statistics over tail rows": "rows beyond the last one count",
    "semaphore not reset": "the next launch finds a used ticket",
    "missing barrier": "a thread reads what another one has not written yet, or overwrites it",
    "wrong guard": "a check of status, range, padding or end lets something through, or nothing",
    "wrong index": "another element, group, row or coefficient is read",
    "wrong rule": "a formula is not the one of its paper",
    "missing copy wait": "cp.async is not waited for, or for a group too few",
    "early release": "a stage of a pipeline is filled while it is read",
    "wrong stage": "another stage of a pipeline is read",
    "wrong fragment": "ldmatrix brings other rows than mma.sync wants, or no transpose",
    "promotion dropped": "a sum of products grows too long for its precision, or is lost",
    "wrong arrivals": "the last block to arrive is not the last one",
    "early exit": "a block leaves its cluster while the others read its shared memory",
    "shared memory not permitted": "a kernel may have less dynamic memory than a launch asks for",
}

MUTANTS = [
    KernelMutant(
        name="launch_without_permission",
        fault="shared memory not permitted",
        file="cuda/runtime.h",
        old="if (config.dynamic_shared <= kWithoutAttribute) return;",
        new="return;",
        program="launch_test",
        caught="cudaErrorInvalidValue",
        kind="text",
    ),
    KernelMutant(
        name="permission_of_one_launch",
        fault="shared memory not permitted",
        file="cuda/runtime.h",
        old="most -= static_cast<int>(attributes.sharedSizeBytes);",
        new="most = static_cast<int>(config.dynamic_shared);",
        program="launch_test",
        kind="text",
    ),
    KernelMutant(
        name="probe_loses_a_distance",
        fault="wrong reduction",
        file="cuda/probe.cu",
        old="distance = kWarpThreads / 2;",
        new="distance = kWarpThreads / 4;",
        program="probe_test",
        kind="text",
    ),
    KernelMutant(
        name="mma_missing_barrier",
        fault="missing barrier",
        file="cuda/gemm_mma.cu",
        old="sync_block();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_missing_copy_wait",
        fault="missing copy wait",
        file="cuda/gemm_mma.cu",
        old="wait_copies<D::kStages - 2>();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_wrong_stage",
        fault="wrong stage",
        file="cuda/gemm_mma.cu",
        old="multiply_stage<L, Tile, planes>(total, sum, step, stage, stage + L::kBytesA);",
        new="const SharedAddress other = stages + (step + 1) % D::kStages * L::kStageBytes;"
        " multiply_stage<L, Tile, planes>(total, sum, step, other, other + L::kBytesA);",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_last_promotion_dropped",
        fault="promotion dropped",
        file="cuda/gemm_mma.cu",
        old="if (D::kPromoteStages > 1) promote(total, sum);",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_wrong_row_of_a",
        fault="wrong fragment",
        file="cuda/gemm_mma.cu",
        old="load_matrices(a, tile + Layout::offset(m + lane % 16, k / 8 + lane / 16));",
        new="load_matrices(a, tile + Layout::offset(m + (lane % 16 ^ 1), k / 8 + lane / 16));",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_transpose_dropped",
        fault="wrong fragment",
        file="cuda/gemm_mma.cu",
        old="load_matrices<true>(b, tile + Layout::offset(row, n / 8 + lane / 16));",
        new="load_matrices(b, tile + Layout::offset(row, n / 8 + lane / 16));",
        program="gemm_test",
    ),
    KernelMutant(
        name="mma_other_half_of_b",
        fault="wrong fragment",
        file="cuda/gemm_mma.cu",
        old="load_matrices(b, tile + Layout::offset(row, k / 8 + lane / 8 % 2));",
        new="load_matrices(b, tile + Layout::offset(row, k / 8 + (lane / 8 + 1) % 2));",
        program="gemm_test",
    ),
    KernelMutant(
        name="simt_late_copy_wait",
        fault="missing copy wait",
        file="cuda/gemm_simt.cu",
        old="wait_copies<kStages - 2>();",
        new="wait_copies<kStages - 1>();",
        program="gemm_test",
    ),
    KernelMutant(
        name="simt_early_release",
        fault="early release",
        file="cuda/gemm_simt.cu",
        old="sync_block();\n    load_stage(step + kStages - 1);",
        new="load_stage(step + kStages - 1); sync_block();",
        program="gemm_test",
    ),
    KernelMutant(
        name="simt_promotion_dropped",
        fault="promotion dropped",
        file="cuda/gemm_simt.cu",
        old="if ((step + 1) % L::kPromoteStages == 0) promote(total, sum);",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="product_reads_past_the_pitch",
        fault="wrong guard",
        file="cuda/gemm_operands.h",
        old="i < rows_left && columns_left > 0",
        new="i < rows_left",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="product_reads_past_the_batch",
        fault="wrong guard",
        file="cuda/gemm_operands.h",
        old="last < task.problem.x.rows ? last : task.problem.x.rows",
        new="last",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="slab_missing_barrier",
        fault="missing barrier",
        file="cuda/gemm_epilogue.h",
        old="// The slab is complete.\n    sync_block();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="slab_missing_reuse_barrier",
        fault="missing barrier",
        file="cuda/gemm_epilogue.h",
        old="// Nobody reads what lies there.\n    sync_block();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="column_sums_missing_barrier",
        fault="missing barrier",
        file="cuda/gemm.cu",
        old="sync_block();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="arrival_before_the_block",
        fault="missing barrier",
        file="cuda/gemm_epilogue.h",
        old="// The whole block has written.\n  sync_block();",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="ticket_not_reset",
        fault="semaphore not reset",
        file="cuda/gemm_epilogue.h",
        old="take_ticket(ticket, last)",
        new="take_ticket(ticket, 0xffffffffu)",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="merge_waits_for_too_few",
        fault="wrong arrivals",
        file="cuda/gemm_epilogue.h",
        old="(last - first + tile_blocks - 1) / tile_blocks",
        new="at_most_int(last - first, 1)",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="part_in_the_place_of_another",
        fault="wrong reduction",
        file="cuda/gemm_epilogue.h",
        old="offset(part, index, r, c)",
        new="offset(part / 2, index, r, c)",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="first_group_of_parts_only",
        fault="wrong reduction",
        file="cuda/gemm_epilogue.h",
        old="group * split.per_group",
        new="0 * group",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="statistics_over_tail_rows",
        fault="statistics over tail rows",
        file="cuda/gemm_epilogue.h",
        old="column_moments<S>(slab.data + c, place.rows, weights, weight)",
        new="column_moments<S>(slab.data + c, S::kRows, weights, weight)",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="statistics_without_a_shift",
        fault="wrong rule",
        file="cuda/gemm_epilogue.h",
        old="T shift = column[0];\n  Moments moments{};\n  TW_NO_UNROLL\n  for (int pass = 0;",
        new="T shift = T(0);\n  Moments moments{};\n  TW_NO_UNROLL\n  for (int pass = 1;",
        program="gemm_test",
        kind="text",
    ),
    KernelMutant(
        name="squares_of_the_first_tiles",
        fault="wrong arrivals",
        file="cuda/gemm_epilogue.h",
        old="arrives_last(task.squares_ticket, tiles)",
        new="arrives_last(task.squares_ticket, tiles > 1 ? tiles - 1 : 1)",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="loss_over_tail_rows",
        fault="statistics over tail rows",
        file="cuda/gemm_epilogue.h",
        old="place.rows > r",
        new="true",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="forward_overwrites_the_sum",
        fault="wrong guard",
        file="cuda/gemm_epilogue.h",
        old="p.accumulate && writes",
        new="false",
        program="gemm_test",
        kind="expression",
    ),
    KernelMutant(
        name="bias_gradient_loses_odd_rows",
        fault="wrong reduction",
        file="cuda/gemm_epilogue.h",
        old="if (place.rows % 2 != 0) even += column[(place.rows - 1) * S::kPitch];",
        new="",
        program="gemm_test",
    ),
    KernelMutant(
        name="signs_of_a_lane_missing",
        fault="wrong reduction",
        file="cuda/gemm_epilogue.h",
        old="word |= shuffle_xor(word, distance);",
        new="if (2 * distance < kLanes) word |= shuffle_xor(word, distance);",
        program="gemm_test",
    ),
    KernelMutant(
        name="last_block_keeps_its_ticket",
        fault="semaphore not reset",
        file="cuda/block_reduction.h",
        old="last = take_ticket(ticket, blocks - 1) == blocks - 1 ? 1 : 0;",
        new="last = atomic_add(ticket, 1u) == blocks - 1 ? 1 : 0;",
        program="arena_operations_test",
    ),
    KernelMutant(
        name="block_sums_without_a_barrier",
        fault="missing barrier",
        file="cuda/block_reduction.h",
        old="  sync_block();  // the sums before have been read\n",
        new="",
        program="arena_operations_test",
        kind="text",
    ),
    KernelMutant(
        name="elementwise_wraps_late",
        fault="wrong index",
        file="cuda/quad_loop.h",
        old="quad >= quads",
        new="quad > quads",
        program="activation_test",
        kind="expression",
    ),
    KernelMutant(
        name="sum_forgets_its_rounding_errors",
        fault="wrong reduction",
        file="cuda/arena_operations.cu",
        old="store_quad(rest + at, lost);",
        new="store_quad(rest + at, Quad<double>{});",
        program="arena_operations_test",
    ),
    KernelMutant(
        name="copy_of_a_failed_step",
        fault="wrong guard",
        file="cuda/arena_operations.cu",
        old="if (!updates_model(*state)) return;",
        new=";",
        program="arena_operations_test",
    ),
    KernelMutant(
        name="status_not_looked_at",
        fault="wrong guard",
        file="cuda/step_state.h",
        old="state.status == StepStatus::kRunning && state.weight > 0.0",
        new="state.weight > 0.0",
        program="optimizer_step_test",
        kind="expression",
    ),
    KernelMutant(
        name="coefficients_of_the_first_update",
        fault="wrong index",
        file="cuda/optimizer_step.cu",
        old="problem.coefficients + state->row * groups * kMaxCoefficients",
        new="problem.coefficients",
        program="optimizer_step_test",
        kind="expression",
    ),
    KernelMutant(
        name="optimizer_drops_the_tail",
        fault="wrong guard",
        file="cuda/optimizer_step.cu",
        old="active[u] = quad < quads;",
        new="active[u] = quad < quads - quads % kThreads;",
        program="optimizer_step_test",
    ),
    KernelMutant(
        name="optimizer_takes_another_group",
        fault="wrong index",
        file="cuda/optimizer_step.cu",
        old="problem.groups.of_block[quad / kQuadsPerGroupBlock] : 0",
        new="problem.groups.of_block[quad / kGroupBlock] : 0",
        program="optimizer_step_test",
        kind="text",
    ),
    KernelMutant(
        name="parameter_becomes_not_finite",
        fault="wrong guard",
        file="cuda/optimizer_step.cu",
        old="x.p[j] = good ? p : x.p[j];",
        new="x.p[j] = p;",
        program="optimizer_step_test",
    ),
    KernelMutant(
        name="norm_of_the_first_blocks",
        fault="wrong index",
        file="cuda/optimizer_step.cu",
        old="problem.blocks[at / kGroupBlock]",
        new="at / kGroupBlock",
        program="optimizer_step_test",
        kind="expression",
    ),
    KernelMutant(
        name="norm_without_the_sums_of_products",
        fault="wrong reduction",
        file="cuda/optimizer_step.cu",
        old="total[0] += problem.sums[i];",
        new="",
        program="optimizer_step_test",
    ),
    KernelMutant(
        name="average_forgets_frozen_groups",
        fault="wrong guard",
        file="cuda/optimizer_step.cu",
        old="moves[u] || (active[u] && averages)",
        new="moves[u]",
        program="optimizer_step_test",
        kind="expression",
    ),
    KernelMutant(
        name="planes_stay_behind",
        fault="wrong guard",
        file="cuda/optimizer_step.cu",
        old="problem.planes.count > 0",
        new="false",
        program="optimizer_step_test",
        kind="expression",
    ),
    KernelMutant(
        name="gradient_not_clipped",
        fault="wrong rule",
        file="cuda/optimizer_step.cu",
        old="const T g = x.g[j] * factor;",
        new="const T g = x.g[j];",
        program="optimizer_step_test",
        kind="text",
    ),
    KernelMutant(
        name="coefficients_without_a_barrier",
        fault="missing barrier",
        file="cuda/optimizer_step.cu",
        old="    to[i] = static_cast<T>(from[i]);\n  }\n  sync_block();",
        new="    to[i] = static_cast<T>(from[i]);\n  }",
        program="optimizer_step_test",
        kind="text",
    ),
    KernelMutant(
        name="dropout_forgets_the_first_row",
        fault="wrong index",
        file="cuda/device_dropout.h",
        old="dropout.first_row + row",
        new="row",
        program="dropout_test",
        kind="expression",
    ),
    KernelMutant(
        name="maxout_takes_the_last_maximum",
        fault="wrong rule",
        file="math/maxout.h",
        old="return x > m || (x != x && m == m);",
        new="return x >= m || (x != x && m == m);",
        program="maxout_test",
    ),
    KernelMutant(
        name="sum_counts_the_label",
        fault="wrong reduction",
        file="cuda/loss.cu",
        old="counts && column + j != label ? e : T(0)",
        new="counts ? e : T(0)",
        program="loss_test",
        kind="expression",
    ),
    KernelMutant(
        name="padding_wins",
        fault="wrong guard",
        file="cuda/loss.cu",
        old="other.column < z.width && precedes(other, best)",
        new="precedes(other, best)",
        program="loss_test",
        kind="expression",
    ),
    KernelMutant(
        name="lanes_not_summed",
        fault="wrong reduction",
        file="cuda/loss.cu",
        old="double sum_lanes(double value) {\n  TW_UNROLL\n  for (int distance = kLanes / 2;",
        new="double sum_lanes(double value) {\n  TW_UNROLL\n  for (int distance = kLanes / 4;",
        program="loss_test",
        kind="text",
    ),
    KernelMutant(
        name="loss_of_nothing_fails",
        fault="wrong guard",
        file="cuda/loss.cu",
        old="updates_model(state) && !is_finite(state.loss)",
        new="!is_finite(state.loss)",
        program="loss_test",
        kind="expression",
    ),
    KernelMutant(
        name="parts_of_a_loss_not_added",
        fault="wrong reduction",
        file="cuda/loss.cu",
        old="state.loss = problem.accumulate ? state.loss + total[0] : total[0];",
        new="state.loss = total[0];",
        program="loss_test",
    ),
    KernelMutant(
        name="row_results_without_a_barrier",
        fault="missing barrier",
        file="cuda/loss.cu",
        old="    if (lane == 0) results[r] = result;\n  }\n  sync_block();",
        new="    if (lane == 0) results[r] = result;\n  }",
        program="loss_test",
        kind="text",
    ),
    KernelMutant(
        name="tail_rows_of_a_loss",
        fault="statistics over tail rows",
        file="cuda/loss.cu",
        old="thread_index().x < block_rows && row < rows",
        new="thread_index().x < block_rows",
        program="loss_test",
        kind="expression",
    ),
    KernelMutant(
        name="gather_without_a_barrier",
        fault="missing barrier",
        file="cuda/gather.cu",
        old="* x.row_stride;\n    }\n    sync_block();",
        new="* x.row_stride;\n    }",
        program="gather_test",
        kind="text",
    ),
    KernelMutant(
        name="gather_reuses_offsets_early",
        fault="missing barrier",
        file="cuda/gather.cu",
        old="    sync_block();  // the offsets of the tile before have been read\n",
        new="",
        program="gather_test",
        kind="text",
    ),
    KernelMutant(
        name="weights_of_another_row_block",
        fault="wrong index",
        file="cuda/gather.cu",
        old="thread_index().x * kWarpsPerRowBlock + w",
        new="thread_index().x + w",
        program="gather_test",
        kind="expression",
    ),
    KernelMutant(
        name="label_one_too_large",
        fault="wrong guard",
        file="cuda/gather.cu",
        old="label < 0 || label >= problem.classes",
        new="label < 0 || label > problem.classes",
        program="gather_test",
        kind="expression",
    ),
    KernelMutant(
        name="scale_of_no_weight",
        fault="wrong guard",
        file="cuda/gather.cu",
        old="total[0] > 0.0 ? 1.0 / divisor : 0.0",
        new="1.0 / divisor",
        program="gather_test",
        kind="expression",
    ),
    KernelMutant(
        name="gather_in_plain_order",
        fault="wrong index",
        file="cuda/gather.cu",
        old="order.state->order(order.state->position + order.offset + r)",
        new="order.state->position + order.offset + r",
        program="gather_test",
        kind="expression",
    ),
    KernelMutant(
        name="last_row_block_counts_in_full",
        fault="statistics over tail rows",
        file="cuda/batch_norm.cu",
        old="static_cast<double>(rest < kRowBlock ? rest : kRowBlock)",
        new="static_cast<double>(kRowBlock)",
        program="batch_norm_test",
        kind="expression",
    ),
    KernelMutant(
        name="statistics_without_a_barrier",
        fault="missing barrier",
        file="cuda/batch_norm.cu",
        old="store_group_sums<kLanes, T>(sums, place, s1, s2);\n  sync_block();",
        new="store_group_sums<kLanes, T>(sums, place, s1, s2);",
        program="batch_norm_test",
    ),
    KernelMutant(
        name="merge_without_a_barrier",
        fault="missing barrier",
        file="cuda/batch_norm.cu",
        old="    slices[kTasks + task] = sum.b;\n  }\n  sync_block();",
        new="    slices[kTasks + task] = sum.b;\n  }",
        program="batch_norm_test",
        kind="text",
    ),
    KernelMutant(
        name="merge_loses_a_slice",
        fault="wrong reduction",
        file="cuda/batch_norm.cu",
        old="slice < kSlices",
        new="slice < kSlices - 1",
        program="batch_norm_test",
        kind="expression",
    ),
    KernelMutant(
        name="slab_does_not_wait_for_its_cluster",
        fault="missing barrier",
        file="cuda/batch_norm.cu",
        old="sync_cluster();\n\n  const double total = total_weight(weights, z.rows);",
        new="sync_block();\n\n  const double total = total_weight(weights, z.rows);",
        program="batch_norm_test",
        kind="text",
    ),
    KernelMutant(
        name="slab_leaves_its_cluster_early",
        fault="early exit",
        file="cuda/batch_norm.cu",
        old="load_quad(slab.element(0, row, own_lane)));\n    });\n  }\n  wait_cluster();",
        new="load_quad(slab.element(0, row, own_lane)));\n    });\n  }",
        program="batch_norm_test",
        caught=r"distributed shared memory: block .* has exited",
        kind="text",
    ),
    KernelMutant(
        name="derivative_at_the_argument",
        fault="wrong rule",
        file="cuda/batch_norm.cu",
        old="Phi::backward_needs == ActivationNeeds::output ? Phi::value(pre, parameter) : pre",
        new="pre",
        program="batch_norm_test",
        kind="expression",
    ),
    KernelMutant(
        name="running_variance_biased",
        fault="wrong rule",
        file="cuda/batch_norm.cu",
        old="total / (total - 1.0)",
        new="1.0",
        program="batch_norm_test",
        kind="expression",
    ),
    KernelMutant(
        name="running_statistics_of_a_failed_step",
        fault="wrong guard",
        file="cuda/batch_norm.cu",
        old="state != nullptr && !updates_model(*state)",
        new="false",
        program="batch_norm_test",
        kind="expression",
    ),
    KernelMutant(
        name="tangent_of_activations_is_linear",
        fault="wrong rule",
        file="cuda/activation.cu",
        old="g[j] * (Phi::second_derivative(s[j], parameter) * q[j])",
        new="T(0)",
        program="tangent_test",
        kind="expression",
    ),
    KernelMutant(
        name="tangent_of_maxout_takes_the_first_piece",
        fault="wrong rule",
        file="cuda/maxout.cu",
        old="z_tangent.data[row * z_tangent.pitch + first + piece]",
        new="z_tangent.data[row * z_tangent.pitch + first]",
        program="tangent_test",
        kind="expression",
    ),
    KernelMutant(
        name="tangent_of_batch_norm_keeps_xhat",
        fault="wrong rule",
        file="cuda/batch_norm_tangent.cu",
        old="madd(tangent[j], x.value[j], madd(gradient[j], x.tangent[j], b[j]))",
        new="madd(tangent[j], x.value[j], b[j])",
        program="tangent_test",
        kind="expression",
    ),
    KernelMutant(
        name="tangent_of_batch_norm_adds_the_wrong_half",
        fault="wrong reduction",
        file="cuda/batch_norm_tangent.cu",
        old="b += partials[(blocks + block) * pitch + column];",
        new="b += partials[block * pitch + column];",
        program="tangent_test",
    ),
    KernelMutant(
        name="tangent_of_cross_entropy_is_not_centred",
        fault="wrong rule",
        file="cuda/loss.cu",
        old="static_cast<T>(tangent_sum / sum)",
        new="T(0)",
        program="tangent_test",
        kind="expression",
    ),
    KernelMutant(
        name="tangent_of_cross_entropy_has_no_weight",
        fault="wrong rule",
        file="cuda/loss.cu",
        old="problem.gradient_scale * weight * total",
        new="problem.gradient_scale * total",
        program="tangent_test",
        kind="expression",
    ),
]


def includes(path: Path) -> set[str]:
    return set(re.findall(r'#include "((?:cuda|core|math)/[^"]+)"', path.read_text("utf-8")))


def closure(program: str) -> tuple[list[str], dict[str, set[str]]]:
    """The sources that a test program needs, and all files that each of them includes.

    A header stands for the sources beside it that have its name, or its name and a suffix.
    """
    headers: dict[str, set[str]] = {}

    def reach(path: Path, seen: set[str]) -> set[str]:
        for name in includes(path):
            if name not in seen and (CSRC / name).is_file():
                seen.add(name)
                reach(CSRC / name, seen)
        return seen

    found: list[str] = []
    pending = reach(PROGRAMS / f"{program}.cu", set())
    for helper in PROGRAMS.glob("*.h"):
        reach(helper, pending)
    headers[f"{program}.cu"] = set(pending)
    while pending:
        header = pending.pop()
        path = CSRC / header
        if header.startswith(("cuda/device/", "cuda/emulator/", "math/")):
            continue
        for source in sorted(path.parent.glob(f"{path.stem}*")):
            name = source.relative_to(CSRC).as_posix()
            if source.suffix not in {".cu", ".cpp"} or name in headers:
                continue
            headers[name] = reach(source, set())
            found.append(name)
            pending |= headers[name]
    emulator = sorted((CSRC / "cuda" / "emulator").glob("*.cpp"))
    found += [path.relative_to(CSRC).as_posix() for path in emulator]
    found.append("core/available_processors.cpp")
    return list(dict.fromkeys(found)), headers


class Workshop:
    """Compiles programs, each object file once."""

    def __init__(self, compiler: str, folder: Path) -> None:
        ccache = shutil.which("ccache")
        self.compiler = [compiler] if ccache is None else [ccache, compiler]
        self.folder = folder
        self.objects: dict[tuple[str, str], Path] = {}
        self.programs: dict[tuple[str, int | None], Path] = {}
        (folder / "switch.h").write_text(SWITCH_HEADER)
        self.overlay("all", planted(row for row in enumerate(MUTANTS) if row[1].kind != "text"))

    def overlay(self, name: str, texts: dict[str, str]) -> None:
        for file, text in texts.items():
            target = self.folder / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def object(self, source: Path, overlay: str) -> Path:
        key = (str(source), overlay)
        if key not in self.objects:
            target = self.folder / f"{source.stem}_{len(self.objects)}.o"
            self.objects[key] = target
            command = [*self.compiler, *FLAGS, "-include", str(self.folder / "switch.h")]
            command += [f"-I{path}" for path in (self.folder / overlay, CSRC)]
            done = subprocess.run(
                [*command, "-x", "c++", "-c", str(source), "-o", str(target)],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        return self.objects[key]

    def program(self, name: str, number: int | None = None) -> Path:
        """The program `name`; with a number, the one that has that textual mutant in it."""
        key = (name, number)
        if key in self.programs:
            return self.programs[key]
        sources, headers = closure(name)
        touched = None
        if number is not None:
            touched = MUTANTS[number].file
            self.overlay(f"mutant_{number}", planted([(number, MUTANTS[number])]))
        jobs = []
        for source in [f"{name}.cu", *sources]:
            changed = touched == source or touched in headers.get(source, ())
            overlay = f"mutant_{number}" if changed else "all"
            path = self.folder / overlay / source
            if not path.is_file():
                path = (PROGRAMS if source == f"{name}.cu" else CSRC) / source
            jobs.append((path, overlay))
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: self.object(*job), jobs))
        target = self.folder / (name if number is None else f"{name}_{number}")
        command = [self.compiler[-1], *map(str, objects), "-o", str(target), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.programs[key] = target
        return target


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Workshop:
    return Workshop(compiler, tmp_path_factory.mktemp("mutants"))


def run(program: Path, seed: int, mutant: int | None) -> tuple[int, str]:
    """Exit status and output of a program, which stops at its first failure."""
    environment = {**os.environ, "THALWEG_EMULATOR_SEED": str(seed), "THALWEG_TEST_STOP": "1"}
    if mutant is not None:
        environment["THALWEG_MUTANT"] = str(mutant)
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("program", sorted({mutant.program for mutant in MUTANTS}))
def test_unchanged_kernels_pass(program: str, workshop: Workshop) -> None:
    """Without a fault the same programs pass, so that it is the fault that a failure is about."""
    for seed in SEEDS:
        status, output = run(workshop.program(program), seed, None)
        assert status == 0, f"seed {seed}:\n{output}"


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.name for mutant in MUTANTS])
def test_fault_is_caught(number: int, workshop: Workshop) -> None:
    mutant = MUTANTS[number]
    text = mutant.kind == "text"
    program = workshop.program(mutant.program, number if text else None)
    outputs = []
    for seed in SEEDS:
        status, output = run(program, seed, None if text else number)
        if status != 0 and re.search(mutant.caught, output, re.MULTILINE):
            return
        outputs.append(f"seed {seed}: status {status}\n{output[-2000:]}")
    pytest.fail("\n".join(outputs))


def test_every_fault_is_represented() -> None:
    assert {mutant.fault for mutant in MUTANTS} == set(FAULTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
