# The commands of the project, for people; `.ci/run` runs the same.

# Types only, fastest.
check:
    cargo check --all-targets

# Unit, property, conformance and documentation tests.
test:
    cargo test --release

# Formatting, clippy, licences, spelling.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --release --all-targets -- -D warnings
    cargo deny check
    typos
    # Comments fit 100 columns, except rows of tables and hidden lines of examples.
    ! LC_ALL=C.UTF-8 grep -rnP --include='*.rs' '^(?=.{101,})\s*//(?![/!]? ?[|#])' src tests examples benches

# The documentation, without a warning.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --features images,metrics,models,pytorch,report,text

# A line for each case from PyTorch and diffusers.
conformance *PATHS="tests/conformance":
    cargo run --release --example conformance -- {{PATHS}}

# The conformance cases, the kernels and the gradients of a network on wgpu, over a GPU or a software driver.
wgpu:
    SISS_TEST_DEVICE=wgpu cargo test --profile software-gpu --features wgpu,fused --test conformance --test kernel --test self_check
    cargo test --profile software-gpu --features wgpu,fused --lib cube::

# How many kernels a step launches, by name.
launches *ARGS:
    cargo run --profile software-gpu --features wgpu,fused --example step_cost -- --workload digits --batch 4 --device wgpu --launches {{ARGS}}

# Unlearning in the plane, where the right answer is known.
toy *ARGS:
    cargo run --release --example toy_2d -- {{ARGS}}

# The main job.
tshirt *ARGS:
    cargo run --release --example mnist_tshirt -- {{ARGS}}

# Your own diffusers model and folders of images.
unlearn *ARGS:
    cargo run --release --example unlearn -- {{ARGS}}

# Pictures under variants of a prompt, memorised ones and others: data for `unlearn` where none are kept.
prompt-variants *ARGS:
    cargo run --release --example prompt_variants -- {{ARGS}}

# Every method on the T-shirt: runs what docs/results/methods.csv lacks, and writes the table of docs/results.md.
compare *ARGS:
    cargo run --release --example compare -- {{ARGS}}

# How well the loss of a model that never saw a point is predicted: CSV, plot and table of docs/results.md.
counterfactual *ARGS:
    cargo run --release --example counterfactual -- {{ARGS}}

# How close unlearned models come to a retrained one: CSV, table and plot in target/closeness.
closeness *ARGS:
    cargo run --release --example closeness -- {{ARGS}}

# How well the answers of a model that never saw an image are predicted: CSV and table in target/predicted_answers.
predicted-answers *ARGS:
    cargo run --release --example predicted_answers -- {{ARGS}}

# A model that memorises some pictures, or its twin that never saw them.
pretrain *ARGS:
    cargo run --release --example pretrain -- {{ARGS}}

# What a step costs beside an ordinary one.
cost *ARGS:
    cargo run --release --example step_cost -- {{ARGS}}

# The variance of the gradients and of the weights: CSV, plot and table of docs/performance.md.
variance *ARGS:
    cargo run --release --example variance -- {{ARGS}}

# Seconds until no T-shirt is drawn: CSV and table of docs/performance.md.
time-to-forget *ARGS:
    cargo run --release --example time_to_forget -- {{ARGS}}

# The long forms of the tests of docs/reliability.md.
soak:
    SISS_SOAK=1 cargo test --release --test checkpoint --test hostile_files --test long_run -- --nocapture

# A fuzz target, with cargo-fuzz and a nightly compiler: checkpoint, grey_png, idx, levels, manifest, pickle, picture,
# pipeline_index, safetensors, scheduler_config, unet_config or weight_index. What it finds to be new is kept in fuzz/corpus.
fuzz TARGET SECONDS="60":
    mkdir -p fuzz/corpus/{{TARGET}} fuzz/seeds/{{TARGET}}
    {{ if TARGET == "pickle" { "cp tests/conformance/unet_pickled/*.bin fuzz/corpus/pickle/" } else { "true" } }}
    cargo +nightly fuzz run -s none {{TARGET}} fuzz/corpus/{{TARGET}} fuzz/seeds/{{TARGET}} -- -max_total_time={{SECONDS}} -rss_limit_mb=1024

# Each fuzz target in turn.
fuzz-all SECONDS="60":
    for target in checkpoint grey_png idx levels manifest pickle picture pipeline_index safetensors scheduler_config unet_config weight_index; do \
        just fuzz $target {{SECONDS}} || exit 1; \
    done

# The benchmarks.
bench:
    cargo bench

# Everything that the gate checks.
ci:
    bash .ci/run
