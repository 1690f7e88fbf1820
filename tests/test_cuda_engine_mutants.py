"""Planted faults in the CUDA engine: named tests of the suite have to notice every one of them.

All faults are compiled into one copy of the engine's files, linked with the other object files of
an emulated build, and put into a copy of the package. THALWEG_MUTANT tells which of them to make;
without it the copy is the product.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from mutants import CSRC, SWITCH_HEADER, Mutant, planted
from thalweg import _core

BUILD = Path(os.environ.get("THALWEG_BUILD_FOLDER", ROOT / "build" / "editable"))
EMULATED_BUILD = (
    "emulator" in _core.information()["cuda_report"]
    and (BUILD / "build.ninja").is_file()
    and shutil.which("ninja") is not None
)
pytestmark = pytest.mark.skipif(
    not EMULATED_BUILD,
    reason="needs the object files of an emulated build: THALWEG_BUILD_FOLDER, and ninja",
)
LIBRARY = "libthalweg.so.0"
# The files with faults, and those that include headers with faults.
RECOMPILED = re.compile(r"cuda_\w+\.cpp")


@dataclass(frozen=True, kw_only=True)
class EngineMutant(Mutant):
    """A fault, `fault` one of FAULTS, that a test has to notice."""

    test: str  # below tests/
    seeds: tuple[int, ...] = (0,)  # of the emulator; 0: copies and streams as late as possible


FAULTS = {
    "baked value": "a graph repeats what one update had",
    "wrong graph": "an update replays the graph of another shape, or of memory that is gone",
    "missing wait": "a copy, or the host, does not wait for the one before",
    "wrong rows": "rows of a minibatch, or of its last part, are read or counted wrongly",
    "wrong weights": "weights of rows do not count as they should",
    "wrong order": "another row, counter or random number",
    "stale planes": "products read bfloat16 copies of old weights",
    "shared memory": "two values lie in one place",
    "failed update": "an update that fails leaves something behind",
    "wrong state": "state of training is lost, or counts twice",
    "wrong rule": "arithmetic that is not what is documented",
    "wrong architecture": "kernels are chosen by what the GPU has, not by what they have",
}

MUTANTS = [
    EngineMutant(
        name="dropout_of_the_first_step_forever",
        fault="baked value",
        file="network/cuda_backend.cpp",
        old="dropout.state = results_.state;",
        new="",
        test="test_training.py::test_steps_follow_the_reference[sgd-plain]",
    ),
    EngineMutant(
        name="rates_of_the_first_run",
        fault="baked value",
        file="training/cuda_update.cpp",
        old="send(host_coefficients_.data(), coefficients_.data(), rows * width);",
        new="if (cursor.updates == 0)"
        " send(host_coefficients_.data(), coefficients_.data(), rows * width);",
        test="test_training.py::test_steps_follow_the_reference[adam-scheduled]",
    ),
    EngineMutant(
        name="graph_of_another_number_of_rows",
        fault="wrong graph",
        file="training/cuda_update.cpp",
        old="shape.batch = first.rows;\n  shape.rows = rows;",
        new="shape.rows = 1;",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="graph_of_another_type",
        fault="wrong graph",
        file="training/cuda_update.cpp",
        old="shape.dtypes[i] = arrays[i]->dtype;",
        new="",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="graph_of_another_slot",
        fault="wrong graph",
        file="training/cuda_update.cpp",
        old="shape.data[i] = arrays[i]->data;",
        new="",
        test="test_cuda.py::test_data_beyond_the_memory_are_streamed[1]",
    ),
    EngineMutant(
        name="graph_of_a_workspace_that_is_gone",
        fault="wrong graph",
        file="training/cuda_update.cpp",
        old="steps_.clear();\n    workspace_.reset();",
        new="workspace_.reset();",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="graph_of_an_optimizer_that_is_gone",
        fault="wrong graph",
        file="training/cuda_engine.cpp",
        old="coefficients_ = {};  // for another number of groups\n  steps_.clear();",
        new="coefficients_ = {};",
        test="test_training.py::test_a_new_optimizer_starts_from_its_first_update",
    ),
    EngineMutant(
        name="part_of_an_update_in_the_place_of_the_first",
        fault="wrong graph",
        file="training/cuda_update.cpp",
        old="has_dropout(plan_) ? first.first_row : std::min<std::int64_t>(first.first_row, 1)",
        new="0",
        kind="expression",
        test="test_cuda.py::test_data_beyond_the_memory_are_streamed[3]",
    ),
    EngineMutant(
        name="slot_filled_while_it_is_read",
        fault="missing wait",
        file="training/cuda_data.cpp",
        old="used_[slot].wait_on(copies_, kOperation);",
        new="",
        test="test_cuda.py::test_data_beyond_the_memory_are_streamed[3]",
        seeds=(0, 1, 2),
    ),
    EngineMutant(
        name="slot_read_before_it_is_filled",
        fault="missing wait",
        file="training/cuda_data.cpp",
        old="copied_[slot].wait_on(compute, kOperation);",
        new="",
        test="test_cuda.py::test_data_beyond_the_memory_are_streamed[1]",
    ),
    EngineMutant(
        name="pinned_slot_overwritten_before_it_is_copied",
        fault="missing wait",
        file="training/cuda_data.h",
        old="copied_[slot].synchronize(kOperation);",
        new="",
        test="test_cuda.py::test_data_beyond_the_memory_are_streamed[3]",
    ),
    EngineMutant(
        name="pinned_half_overwritten_before_it_is_copied",
        fault="missing wait",
        file="training/cuda_data.cpp",
        old="copied[turn].synchronize(kOperation);",
        new="",
        test="test_cuda.py::test_training_agrees_with_the_cpu",
    ),
    EngineMutant(
        name="weight_of_an_update_overwritten_before_it_is_copied",
        fault="missing wait",
        file="training/cuda_update.cpp",
        old="update_weights_.data() + 2 * index",
        new="update_weights_.data()",
        kind="expression",
        test="test_cuda.py::test_training_agrees_with_the_cpu",
    ),
    EngineMutant(
        name="outputs_taken_before_they_are_there",
        fault="missing wait",
        file="training/cuda_passes.cpp",
        old="wait_for(lane.finished[static_cast<std::size_t>(slot)], interrupt, operation)",
        new="true",
        kind="expression",
        test="test_determinism.py::test_outputs_do_not_depend_on_the_batch[float32]",
    ),
    EngineMutant(
        name="variance_of_the_largest_minibatch",
        fault="wrong rows",
        file="network/cuda_backend.cpp",
        old="static_cast<double>(workspace_.rows())",
        new="static_cast<double>(workspace_.capacity())",
        kind="expression",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="evaluation_of_the_last_chunk",
        fault="wrong rows",
        file="training/cuda_passes.cpp",
        old="results.accumulate = first > 0;",
        new="",
        test="test_determinism.py::test_outputs_do_not_depend_on_the_batch[float32]",
    ),
    EngineMutant(
        name="gradient_of_the_last_part",
        fault="wrong rows",
        file="training/cuda_update.cpp",
        old="return {state_.data(), gradients_.data(), minibatch.first_row > 0, squares_.data()};",
        new="return {state_.data(), gradients_.data(), false, squares_.data()};",
        test="test_cuda.py::test_training_agrees_with_the_cpu",
    ),
    EngineMutant(
        name="loss_of_an_epoch_starts_again_with_every_run",
        fault="wrong state",
        file="training/cuda_update.cpp",
        old="state.run_loss = cursor.loss;",
        new="",
        test="test_cuda.py::test_results_do_not_depend_on_the_runs[options0]",
    ),
    EngineMutant(
        name="masks_of_the_first_part",
        fault="wrong order",
        file="network/cuda_backend.cpp",
        old="dropout.first_row = pass.first_row;",
        new="",
        test="test_cuda.py::test_training_agrees_with_the_cpu",
    ),
    EngineMutant(
        name="masks_of_another_layer",
        fault="wrong order",
        file="network/cuda_backend.cpp",
        old="dropout.stream = node.stream;",
        new="",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="step_of_the_masks_forgotten",
        fault="wrong order",
        file="training/cuda_update.cpp",
        old="state.steps = cursor.steps;",
        new="",
        test="test_training.py::test_steps_follow_the_reference[sgd-plain]",
    ),
    EngineMutant(
        name="weights_of_rows_ignored",
        fault="wrong weights",
        file="training/cuda_update.cpp",
        old="fit.weighted = source.data.weights.present() || !source.class_weights.empty();",
        new="",
        test="test_training.py::test_steps_follow_the_reference[sgd-plain]",
    ),
    EngineMutant(
        name="parts_weigh_their_rows",
        fault="wrong weights",
        file="training/cuda_update.cpp",
        old="weighted ? weigh(order, part, interrupt) : static_cast<double>(part.rows)",
        new="static_cast<double>(part.rows)",
        kind="expression",
        test="test_cuda.py::test_training_agrees_with_the_cpu",
    ),
    EngineMutant(
        name="parts_of_a_custom_loss_count_in_full",
        fault="wrong weights",
        file="training/cuda_update.cpp",
        old="rows / static_cast<double>(update.rows)",
        new="1.0",
        kind="expression",
        test="test_training.py::test_a_custom_loss_equals_the_built_in_one[epoch-3]",
    ),
    EngineMutant(
        name="planes_of_the_weights_before",
        fault="stale planes",
        file="training/cuda_update.cpp",
        old="step.planes = parameters_.plane_arena();",
        new="",
        test="test_cuda.py::test_tensor_cores_see_every_update[highest-2e-06]",
    ),
    EngineMutant(
        name="planes_of_the_weights_that_were_replaced",
        fault="stale planes",
        file="network/cuda_parameters.cpp",
        old="cuda::split_planes(values.data(), layout.size, plane_arena(), stream);",
        new="",
        test="test_cuda.py::test_tensor_cores_see_every_update[highest-2e-06]",
    ),
    EngineMutant(
        name="a_plane_too_few",
        fault="stale planes",
        file="network/cuda_precision.cpp",
        old="cuda::Precision::kThreePlanes",
        new="cuda::Precision::kTwoPlanes",
        kind="expression",
        test="test_cuda.py::test_tensor_cores_see_every_update[highest-2e-06]",
    ),
    EngineMutant(
        name="planes_of_all_buffers_in_one_place",
        fault="shared memory",
        file="network/cuda_workspace.cpp",
        old="plane_offset[holder[b]] * capacity",
        new="0",
        kind="expression",
        test="test_cuda.py::test_tensor_cores_see_every_update[highest-2e-06]",
    ),
    EngineMutant(
        name="values_share_what_gradients_may_share",
        fault="shared memory",
        file="network/cuda_workspace.cpp",
        old="own[b] = b;",
        new="own[b] = plan.gradient_holder(b);",
        test="test_gradients.py::test_networks[residual in residual-training]",
    ),
    EngineMutant(
        name="groups_of_a_tensor_that_is_not_aligned",
        fault="shared memory",
        file="network/cuda_layout.h",
        old="round_up(rows * place.pitch, kGroupBlock)",
        new="rows * place.pitch",
        kind="expression",
        test="test_training.py::test_steps_follow_the_reference[sgd-grouped]",
    ),
    EngineMutant(
        name="rows_of_a_weight_without_its_pitch",
        fault="shared memory",
        file="network/cuda_layout.h",
        old="tensors[t].offset + r * tensors[t].pitch",
        new="tensors[t].offset + r * width",
        kind="expression",
        test="test_training.py::test_steps_follow_the_reference[sgd-plain]",
    ),
    EngineMutant(
        name="statistics_of_a_failed_update",
        fault="failed update",
        file="training/cuda_update.cpp",
        old="backend.running_statistics(pass, parameters_.state.data(), parameters_.state.data(),\n"
        "                               parameters_.batches.data(), state);",
        new="backend.running_statistics(pass, parameters_.state.data(), parameters_.state.data(),"
        " parameters_.batches.data(), nullptr);",
        test="test_cuda.py::test_statistics_of_a_failed_update[1]",
    ),
    EngineMutant(
        name="statistics_of_a_failed_update_in_parts",
        fault="failed update",
        file="training/cuda_update.cpp",
        old="cuda::copy_if_running(state, staged_state_.data(), parameters_.state.data(),\n"
        "                          staged_state_.bytes(), stream);",
        new="cuda::check(cudaMemcpyAsync(parameters_.state.data(), staged_state_.data(),"
        " staged_state_.bytes(), cudaMemcpyDeviceToDevice, stream), kOperation);",
        test="test_cuda.py::test_statistics_of_a_failed_update[2]",
    ),
    EngineMutant(
        name="gradients_are_not_looked_at",
        fault="failed update",
        file="training/cuda_update.cpp",
        old="cuda::gradient_norm(norm, scratch, stream);",
        new="",
        test="test_training.py::test_check_finite_gradients_keeps_the_whole_update_back",
    ),
    EngineMutant(
        name="squares_of_what_moves_no_more",
        fault="wrong state",
        file="training/cuda_engine.cpp",
        old="clear(squares_, stream_);",
        new="",
        test="test_cuda.py::test_norms_of_gradients[highest]",
    ),
    EngineMutant(
        name="norm_of_frozen_vectors",
        fault="wrong rule",
        file="training/cuda_engine.cpp",
        old="plan.tensors[t].is_weight() || rules.frozen(static_cast<int>(t))",
        new="plan.tensors[t].is_weight()",
        kind="expression",
        test="test_cuda.py::test_norms_of_gradients[highest]",
    ),
    EngineMutant(
        name="dropout_is_to_blame",
        fault="failed update",
        file="training/cuda_update.cpp",
        old="node.dropout >= 0 && CudaBackend<T>::fuses_dropout(node)",
        new="false",
        kind="expression",
        test="test_cuda.py::test_dropout_is_not_to_blame",
    ),
    EngineMutant(
        name="statistics_of_the_last_part",
        fault="wrong state",
        file="training/cuda_update.cpp",
        old="first ? parameters_.state.data() : staged_state_.data()",
        new="parameters_.state.data()",
        kind="expression",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="averages_of_one_update",
        fault="wrong state",
        file="training/cuda_update.cpp",
        old="if (weight > 0.0) ++ahead.averaged;",
        new="",
        test="test_cuda.py::test_results_do_not_depend_on_the_runs[options0]",
    ),
    EngineMutant(
        name="failed_update_counted_as_passed",
        fault="failed update",
        file="training/cuda_update.cpp",
        old="planned_[static_cast<std::size_t>(next)].begin +\n"
        "                                  planned_[static_cast<std::size_t>(next)].rows <=\n"
        "                              state.position",
        new="planned_[static_cast<std::size_t>(next)].begin <= state.position",
        kind="expression",
        test="test_cuda.py::test_dropout_is_not_to_blame[squared_error-none]",
    ),
    EngineMutant(
        name="one_counter_of_batches",
        fault="wrong state",
        file="network/cuda_backend.cpp",
        old="layer.batches = batches + s;",
        new="layer.batches = batches;",
        test="test_cuda.py::test_more_batch_norms_than_one_launch_takes",
    ),
    EngineMutant(
        name="statistics_of_the_first_launch",
        fault="wrong state",
        file="network/cuda_backend.cpp",
        old="layers.data() + i",
        new="layers.data()",
        kind="expression",
        test="test_cuda.py::test_more_batch_norms_than_one_launch_takes",
    ),
    EngineMutant(
        name="folds_of_the_first_launch",
        fault="wrong state",
        file="network/cuda_backend.cpp",
        old="folds.data() + i",
        new="folds.data()",
        kind="expression",
        test="test_cuda.py::test_more_batch_norms_than_one_launch_takes",
    ),
    EngineMutant(
        name="recalibration_biased",
        fault="wrong rule",
        file="training/cuda_passes.cpp",
        old="total / (total - 1.0)",
        new="1.0",
        kind="expression",
        test="test_training.py::test_recalibration_is_the_mean_over_batches",
    ),
    EngineMutant(
        name="kept_values_not_scaled_backward",
        fault="wrong rule",
        file="network/cuda_backend.cpp",
        old="problem.dropout ? 1.0 / (1.0 - problem.dropout->rate) : 1.0",
        new="1.0",
        kind="expression",
        test="test_cuda.py::test_minibatches_of_other_sizes_and_types",
    ),
    EngineMutant(
        name="statistics_of_the_batch_have_a_gradient_in_evaluation",
        fault="wrong rule",
        file="network/cuda_backend.cpp",
        old="backward.frozen = true;",
        new="",
        test="test_random_networks.py::test_random_networks[0]",
    ),
    EngineMutant(
        name="tensor_cores_of_the_gpu_alone",
        fault="wrong architecture",
        file="network/cuda_precision.cpp",
        old="compiled_for < 80",
        new="compute_capability < 80",
        kind="expression",
        test="test_cuda.py::test_kernels_compiled_for_an_older_gpu[80-75]",
    ),
]


def compiled(command: list[str], source: Path, target: Path, folder: Path) -> None:
    """Compiles `source` by the command that made the object file of the product."""
    words = []
    rest = iter(command)
    for word in rest:
        if word in ("-o", "-c", "-MT", "-MF"):
            next(rest)
        elif word != "-MD":
            words.append(word)
    at = next(i for i, word in enumerate(words) if word.startswith("-I"))
    words.insert(at, f"-I{folder}")
    # Optimized less, in half the time.
    words += ["-O1", "-w", "-include", str(folder / "switch.h")]
    done = subprocess.run(
        [*words, "-c", str(source), "-o", str(target)], cwd=BUILD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, package_dir: Path) -> Path:
    """The folder to import a package from that has all the faults in its library."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "switch.h").write_text(SWITCH_HEADER)
    texts = planted(enumerate(MUTANTS))
    for file, text in texts.items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    listed = subprocess.run(
        ["ninja", "-C", str(BUILD), "-t", "commands", LIBRARY],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    link = shlex.split(listed[-1])
    jobs = []
    for words in map(shlex.split, listed):
        source = Path(words[words.index("-c") + 1]) if "-c" in words else Path()
        if not source.is_relative_to(CSRC) or not RECOMPILED.fullmatch(source.name):
            continue
        copy = folder / source.relative_to(CSRC)
        target = folder / f"{source.name}.o"
        jobs.append((words, copy if copy.is_file() else source, target, folder))
        link[link.index(words[words.index("-o") + 1])] = str(target)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compiled(*job), jobs))
    target = folder / "package" / "thalweg"
    shutil.copytree(package_dir, target)
    shutil.copytree(ROOT / "python" / "thalweg", target, dirs_exist_ok=True)
    library = next(target.rglob(LIBRARY))
    library.unlink()
    link[link.index("-o") + 1] = str(library)
    # ": && g++ ... && what comes after it"
    first = link.index("&&") + 1
    done = subprocess.run(
        link[first : link.index("&&", first)], cwd=BUILD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (target.parent / "sitecustomize.py").write_text(CUSTOMIZE)
    found = subprocess.run(
        [sys.executable, "-c", "import thalweg._core as core; print(core.__file__)"],
        env={**os.environ, "PYTHONPATH": str(target.parent)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).parent == target
    return target.parent


# Comes first in every process that finds the copy on its path: an editable install finds its own
# package, whatever the path says.
CUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


def run(package: Path, tests: list[str], seed: int, mutant: int | None) -> tuple[int, str]:
    """Exit status and output of pytest on the copy."""
    environment = {**os.environ, "THALWEG_DEVICE": "cuda", "THALWEG_EMULATOR_SEED": str(seed)}
    environment["PYTHONPATH"] = str(package)
    if mutant is not None:
        environment["THALWEG_MUTANT"] = str(mutant)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT / "tests", env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_unchanged_engine_passes(package: Path) -> None:
    """Without a fault the same tests pass, so that it is the fault that a failure is about."""
    for seed in sorted({seed for mutant in MUTANTS for seed in mutant.seeds}):
        tests = dict.fromkeys(mutant.test for mutant in MUTANTS if seed in mutant.seeds)
        status, output = run(package, list(tests), seed, None)
        assert status == 0, f"seed {seed}:\n{output}"


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.name for mutant in MUTANTS])
def test_fault_is_caught(number: int, package: Path) -> None:
    mutant = MUTANTS[number]
    for seed in mutant.seeds:
        status, output = run(package, [mutant.test], seed, number)
        if status == 1:  # a test failed; other numbers are those of pytest
            return
    pytest.fail(f"{mutant.test} does not notice it; status {status}\n{output[-3000:]}")


def test_every_fault_is_represented() -> None:
    assert {mutant.fault for mutant in MUTANTS} == set(FAULTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
