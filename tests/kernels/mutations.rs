//! The test of the tests: bugs of the kinds that GPU code has, planted one at a time into copies of the
//! kernels. Each must be seen, by the check that is there for its kind.
//!
//! A mutant is compiled with the emulator into a shared library, and one of the tests above is run on it
//! in a process of its own.

use crate::workshop::{Check, Workshop, files, replace, run_tests, share, text};
use std::path::PathBuf;

struct Mutant {
    /// Under `cuda/`.
    file: &'static str,
    from: &'static str,
    to: &'static str,
    check: Check,
    family: Family,
}

/// A test, and the files it needs.
type Family = (&'static str, &'static [&'static str]);

const PROJECTION: Family = ("projection::residual", &["residual.cu"]);
const GATE_UP: Family = ("projection::gate_up", &["gate_up.cu"]);
const ATTENTION: Family =
    ("attention::grouped_heads_over_several_chunks", &["attention.cu", "prefill_attention.cu", "append.cu"]);
const WIDE_HEADS: Family =
    ("attention::every_head_dim_and_format", &["attention.cu", "prefill_attention.cu", "append.cu"]);
const CODED_CACHE: Family =
    ("attention::codes_over_several_chunks", &["attention.cu", "prefill_attention.cu", "append.cu"]);
const SAMPLE: Family = ("sampling::filters_keep_what_sorting_keeps", &["weigh.cu", "sample.cu"]);
const SLICES: Family = ("sampling::filters_over_several_slices", &["weigh.cu", "sample.cu"]);
const LISTED: Family =
    ("listed::listed_tokens_are_a_row_with_the_others_forbidden", &["weigh.cu", "sample.cu", "adjust.cu"]);
const MASKS: Family = ("listed::masks_leave_the_tokens_of_their_row", &["adjust.cu"]);
const NEXT: Family = ("drafting::next_draft_follows_the_plan", &["next_draft.cu"]);
const ACCEPT: Family =
    ("verdicts::rejection_rounds_with_proposals", &["accept.cu", "adjust.cu", "weigh.cu", "sample.cu"]);
const PROPOSE: Family = ("proposals::what_follows_is_as_often_as_the_target_has_it", &["accept.cu"]);
const COUNT: Family = ("sampling::tokens_are_counted", &["count_tokens.cu"]);
const KEEP: Family = ("rows::rows_are_kept", &["keep_rows.cu"]);
const RECURRENT: Family = ("rows::recurrent_input", &["recurrent_input.cu"]);
const FINISH: Family = ("finish::qkv", &["qkv.cu"]);
const FINISH_RESIDUAL: Family = ("finish::residual", &["qkv.cu", "residual.cu"]);
const FINISH_GATE_UP: Family = ("finish::gate_up", &["qkv.cu", "gate_up.cu"]);
const CODED: Family = ("coded::every_format_has_the_bits_of_the_oracle", &["qkv.cu"]);
const CODED_FORMS: Family = ("coded::forms_have_the_same_bits_whatever_the_number_of_tokens", &["qkv.cu"]);
const CODED_ROWS: Family = ("coded::embeddings_are_dequantised_to_the_bit", &["embedding.cu"]);
const UNPACK: Family = ("weights::unpacked_as_before_packing", &["unpack_weights.cu"]);
const FLASH: Family = ("flash::windows_end_inside_tiles", &["flash_attention.cu", "flash_attention_backward.cu"]);
const CHAINS: Family = ("flash::chains_see_their_own_keys", &["flash_attention.cu", "flash_attention_backward.cu"]);
const GROWN: Family = ("flash::gradients_of_keys_grow", &["flash_attention.cu", "flash_attention_backward.cu"]);
const TAKE: Family = ("training::rows_are_taken_and_added_back", &["take_rows.cu"]);
const LOSS: Family = ("losses::losses_and_their_gradients", &["distill_loss.cu"]);
const NORMS: Family = ("training::norms_and_their_gradients", &["rms_norm.cu", "column_sums.cu"]);
const PACK: Family = ("weights::packed_as_the_host_packs", &["pack_weights.cu"]);
const RANDOM: Family = ("weights::random_weights_are_the_reference", &["random_weights.cu"]);

const fn mutant(file: &'static str, from: &'static str, to: &'static str, check: Check, family: Family) -> Mutant {
    Mutant { file, from, to, check, family }
}

const SKINNY: &str = "common/skinny.cuh";
const GEMM: &str = "common/gemm.cuh";
const CODINGS: &str = "common/coding.cuh";
const CODES: &str = "common/coded.cuh";
const PREFILL: &str = "prefill_attention.cu";
const CHUNK: &str = "common/attention.cuh";
const ROTARY: &str = "common/rotary.cuh";
const CACHED: &str = "common/cached_rows.cuh";
const SAMPLING: &str = "common/sampling.cuh";
const ROW: &str = "common/sampled_row.cuh";

const MUTANTS: [Mutant; 103] = [
    // Barriers left out.
    mutant(
        SKINNY,
        "      __syncthreads();\n      UNROLL for (int t",
        "      UNROLL for (int t",
        Check::Races,
        PROJECTION,
    ),
    mutant(SKINNY, "      }\n      __syncthreads();\n    }", "      }\n    }", Check::Races, PROJECTION),
    mutant(GEMM, "    __syncthreads();\n    copy_next", "    copy_next", Check::Races, PROJECTION),
    mutant(GEMM, "  __syncthreads();  // the stages", "  // the stages", Check::Races, PROJECTION),
    mutant(CHUNK, "  __syncthreads();\n  UNROLL for (int half", "  UNROLL for (int half", Check::Races, ATTENTION),
    mutant(CHUNK, "          }\n      __syncthreads();\n", "          }\n", Check::Races, ATTENTION),
    mutant(PREFILL, "    __syncthreads();  // the queries", "    // the queries", Check::Races, WIDE_HEADS),
    mutant(PREFILL, "    __syncthreads();\n    copy_next", "    copy_next", Check::Races, ATTENTION),
    mutant(SAMPLING, "= value;\n  __syncthreads();", "= value;", Check::Races, SAMPLE),
    mutant(SAMPLING, "    __syncthreads();\n    if (whole)", "    if (whole)", Check::Races, SLICES),
    mutant("flash_attention.cu", "    __syncthreads();  // the keys", "    // the keys", Check::Races, FLASH),
    mutant("common/reduce.cuh", "    __syncthreads();\n  }\n  return", "  }\n  return", Check::Races, LOSS),
    // Copies that are used before they land.
    mutant(GEMM, "wait_copies<GEMM_STAGES - 2>", "wait_copies<GEMM_STAGES - 1>", Check::Orders, PROJECTION),
    mutant(PREFILL, "wait_copies<STAGES - 2>", "wait_copies<STAGES - 1>", Check::Orders, ATTENTION),
    // Lanes that part ways.
    mutant(
        "gate_up.cu",
        "const float up = __shfl_down_sync(ALL_LANES, y, 16);",
        "float up = 0;\n    if (output % 32 < 16) up = __shfl_down_sync(ALL_LANES, y, 16);",
        Check::Orders,
        GATE_UP,
    ),
    // Fragments and swizzles.
    mutant(
        "common/matrix.cuh",
        "{token[2 * step], token[2 * step + 1]}",
        "{token[2 * step + 1], token[2 * step]}",
        Check::Orders,
        PROJECTION,
    ),
    mutant(SKINNY, "return unit ^ token % 8", "return unit ^ token % 4", Check::Orders, PROJECTION),
    mutant(CHUNK, "0x7632 : 0x5410", "0x5410 : 0x7632", Check::Orders, ATTENTION),
    // The order of sums, which only bits show.
    mutant(
        SKINNY,
        "total += partial[from][t * 8 + warp][lane]",
        "total += partial[WARPS - 1 - from][t * 8 + warp][lane]",
        Check::Orders,
        PROJECTION,
    ),
    // Codes: scales of the next group, minima times anything but the sum of x, a class that ends inside a group, codes of
    // another step or not centred, groups of tokens taken for the first one.
    mutant(CODINGS, "half_of(a, step / 2); });", "half_of(a, 1 - step / 2); });", Check::Orders, CODED),
    mutant(CODINGS, "signed_byte(b, step); });", "signed_byte(b, step ^ 1); });", Check::Orders, CODED),
    mutant(
        CODES,
        "load_streaming(scales + lane / 4",
        "load_streaming(scales + (lane / 4 + 1) % 8",
        Check::Orders,
        CODED,
    ),
    mutant(CODES, "y = fmaf(of_row.minimum[step], of_x[i], y)", "y += of_row.minimum[step]", Check::Orders, CODED),
    mutant(CODES, "mma<T>(of_x, ones, b);", "mma<T>(of_x, codes[0], b);", Check::Orders, CODED),
    mutant(CODES, "step % 2 == 0) decode_scales<MINIMA>(w", "step == 0) decode_scales<MINIMA>(w", Check::Orders, CODED),
    mutant(CODES, "(packed, record, step, scales)", "(packed, record, step ^ 2, scales)", Check::Orders, CODED_FORMS),
    mutant(SKINNY, "const int now = chunk + i * CLASSES", "const int now = chunk + i", Check::Orders, CODED),
    mutant(GEMM, "chunk + CLASSES >= chunks", "chunk + CLASSES + 1 >= chunks", Check::Orders, CODED_FORMS),
    mutant(CODES, "coding.centre(), a)", "0, a)", Check::Orders, CODED),
    mutant(CODES, "place(token, step * 2 + lane", "place(token + 1, step * 2 + lane", Check::Orders, CODED_FORMS),
    mutant(SKINNY, "return blockIdx.y * TOKEN_TILES", "return 0 * TOKEN_TILES", Check::Orders, CODED_FORMS),
    mutant(CODINGS, "column % 16 / 4, half", "column % 64 / 16, half", Check::Orders, CODED_ROWS),
    // Numbers of 8 bits: without their signs, zeros that lose theirs, taken for integers, the scales of the next block of columns.
    mutant(CODINGS, "(upper & 0x80008000u) | magnitudes", "magnitudes", Check::Orders, CODED),
    mutant(CODINGS, "? weight : weight + 0.0f", "? weight + 0.0f : weight", Check::Orders, CODED_ROWS),
    mutant(CODINGS, "coding.is_e4m3() ? e4m3_number", "false ? e4m3_number", Check::Orders, CODED_ROWS),
    mutant(CODES, "scales = record + BITS * 8;", "scales = record + BITS * 8 + units();", Check::Orders, CODED),
    // Forms for more tokens than may be handed over at once.
    mutant(SKINNY, "= sum[block][first + t][i]", "= sum[block][t][i]", Check::Orders, PROJECTION),
    mutant(
        "common/epilogue.cuh",
        "token < tokens; token += CLASSES",
        "token < 16; token += CLASSES",
        Check::Orders,
        GATE_UP,
    ),
    // Masks and bounds.
    mutant(CHUNK, "at <= own", "at <= own + 1", Check::Orders, ATTENTION),
    mutant(CHUNK, "mine, at < present)", "mine, at <= present)", Check::Orders, ATTENTION),
    mutant(
        ROTARY,
        "store(position % PAGE_TOKENS, v)",
        "store(position % (PAGE_TOKENS - 1), v)",
        Check::Orders,
        ATTENTION,
    ),
    // Rows in 8 bits: the scale of the neighbouring position or group, of whatever was there before, keys that warps write over
    // each other, rows of one's own that are read before they are coded, pages before they are wide, and past their end.
    mutant(CACHED, "scales(row) + dim / GROUP)", "scales(row ^ 1) + dim / GROUP)", Check::Orders, CODED_CACHE),
    mutant(CACHED, "scales(row) + dim / GROUP)", "scales(row) + (dim / GROUP ^ 1))", Check::Orders, CODED_CACHE),
    mutant(
        CACHED,
        "if (lane == 0) scales(row)[group] = scale;",
        "if (lane == 0 && row % 8) scales(row)[group] = scale;",
        Check::Orders,
        CODED_CACHE,
    ),
    mutant(ROTARY, "rotated[threadIdx.x / WARP]", "rotated[0]", Check::Races, CODED_CACHE),
    mutant("attention.cu", "  __syncthreads();\n  attend_chunk", "  attend_chunk", Check::Orders, CODED_CACHE),
    mutant(PREFILL, "    __syncthreads();  // all of the page", "    // all of the page", Check::Races, CODED_CACHE),
    mutant(PREFILL, "dim, row < present)", "dim, true)", Check::Orders, CODED_CACHE),
    mutant(SAMPLING, "if (lane >= by) reached", "if (lane > by) reached", Check::Orders, SAMPLE),
    mutant(ROW, "size_t(about.destination) * args.stride", "size_t(blockIdx.y) * args.stride", Check::Orders, SAMPLE),
    // What filters keep, and where a draw falls.
    mutant("weigh.cu", "before += ranks[j] < ranks[i]", "before += ranks[j] <= ranks[i]", Check::Orders, SAMPLE),
    mutant(
        "weigh.cu",
        "row.filter.sums[bin] = row.filter.counts[bin] = 0",
        "row.filter.counts[bin] = 0",
        Check::Orders,
        SAMPLE,
    ),
    mutant(
        "weigh.cu",
        "  __syncthreads();\n  for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS)\n    if",
        "  for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS)\n    if",
        Check::Races,
        SAMPLE,
    ),
    mutant(
        "sample.cu",
        "token_reaching(goal, slice * SLICE, end",
        "token_reaching(goal, 0, end",
        Check::Orders,
        SLICES,
    ),
    mutant(SAMPLING, "+ (before + part < before)", "+ 0", Check::Orders, SAMPLE),
    // Columns taken for tokens.
    mutant(ROW, "return weights[token_of(draft_ids, column)]", "return weights[column]", Check::Orders, LISTED),
    mutant("sample.cu", "if (token / 4 != block) block", "if (false) block", Check::Orders, LISTED),
    mutant("sample.cu", "{token_of(args.draft_ids, chosen), conf", "{chosen, conf", Check::Orders, LISTED),
    mutant("adjust.cu", "token = token_of(args.draft_ids, column)", "token = column", Check::Orders, LISTED),
    // The first mask for all rows, a neighbour's, bits of the word before the last one, a confidence by what biases leave.
    mutant("adjust.cu", "size_t(number) * args.mask_words", "size_t(0)", Check::Orders, MASKS),
    mutant(
        "adjust.cu",
        "size_t(number) * args.mask_words",
        "size_t(number ^ 1) * args.mask_words",
        Check::Orders,
        MASKS,
    ),
    mutant("adjust.cu", "token / 32]", "min(int(token / 32), args.mask_words - 2)]", Check::Orders, MASKS),
    mutant("adjust.cu", "head_partial(raw, column)", "head_partial(logit, column)", Check::Orders, MASKS),
    mutant("distill_loss.cu", "size_t(position) * vocab", "size_t(row) * vocab", Check::Orders, LOSS),
    mutant("distill_loss.cu", "p = d * seen;\n    overlap", "p = d;\n    overlap", Check::Orders, LOSS),
    mutant("count_tokens.cu", "i < args.prompt", "i <= args.prompt", Check::Orders, COUNT),
    mutant(
        "pack_weights.cu",
        "load_part(args, row + 8, column)",
        "load_part(args, row + 1, column)",
        Check::Orders,
        PACK,
    ),
    mutant(
        "unpack_weights.cu",
        "make_uint4(first.y, first.w, second.y, second.w)",
        "make_uint4(first.y, second.y, first.w, second.w)",
        Check::Orders,
        UNPACK,
    ),
    mutant("unpack_weights.cu", "row + 8 < args.row_count", "row < args.row_count", Check::Orders, UNPACK),
    mutant(
        "common/finish.cuh",
        "blockIdx.y * (PROJECTION_THREADS / WARP)",
        "blockIdx.y * (PROJECTION_THREADS / WARP - 1)",
        Check::Orders,
        FINISH_RESIDUAL,
    ),
    mutant(
        "common/epilogue.cuh",
        "factor(token_factor(norm, blockIdx.x))",
        "factor(token_factor(norm, blockIdx.y))",
        Check::Orders,
        FINISH_GATE_UP,
    ),
    // A recurrent draft from another text's state, and under no norm.
    mutant(
        "recurrent_input.cu",
        "size_t(args.index[token]) * hidden",
        "size_t(token) * hidden",
        Check::Orders,
        RECURRENT,
    ),
    mutant("recurrent_input.cu", "table.at(row, column) * factor", "table.at(row, column)", Check::Orders, RECURRENT),
    // Proposals judged by what the exit block says of them, replaced by themselves, or taken for drafts that were made.
    mutant("accept.cu", "if (accepted >= about.sampled)", "if (accepted >= about.drafts)", Check::Orders, ACCEPT),
    mutant("accept.cu", "if (accepted >= about.sampled)", "if (accepted >= about.drafts)", Check::Orders, PROPOSE),
    mutant("accept.cu", "if (p[token] && u <= double", "if (u * 0.8 <= double", Check::Orders, PROPOSE),
    mutant("accept.cu", "uint32_t(t) == token ? 0 : p[t]", "p[t]", Check::Orders, PROPOSE),
    mutant("accept.cu", "about.proposed + i - about.sampled", "about.proposed + i", Check::Orders, ACCEPT),
    mutant(
        "accept.cu",
        "counts[draft_token(args, about, i)]++",
        "counts[sampled_drafts(args, about)[i].token]++",
        Check::Orders,
        ACCEPT,
    ),
    // A loop's plan, and what it moves on.
    mutant("next_draft.cu", "confidence >= args.edges", "confidence > args.edges", Check::Orders, NEXT),
    mutant("next_draft.cu", "loop.survival *= rule.kept", "loop.survival = rule.kept", Check::Orders, NEXT),
    mutant("next_draft.cu", "(loop.drafted - 1) * (loop.edges", "loop.drafted * (loop.edges", Check::Orders, NEXT),
    mutant("next_draft.cu", "row.position++, row.drafted++", "row.position++", Check::Orders, NEXT),
    // Rows of `h_N` in places where an earlier round has left others.
    mutant("next_draft.cu", "*args.keep += 1;", "", Check::Orders, NEXT),
    mutant("keep_rows.cu", "size_t(args.index[blockIdx.x])", "size_t(blockIdx.x)", Check::Orders, KEEP),
    // Training: what attention sees, whose gradient it is, what is summed.
    mutant(
        "common/flash.cuh",
        "key > query + args.step - args.window)",
        "key >= query + args.step - args.window)",
        Check::Orders,
        FLASH,
    ),
    mutant(
        "flash_attention_backward.cu",
        "tile.first + keys - 1 + args.window",
        "tile.first + args.window",
        Check::Orders,
        FLASH,
    ),
    mutant(
        "common/flash.cuh",
        "key > query + args.step - args.window",
        "key > query - args.window",
        Check::Orders,
        CHAINS,
    ),
    mutant("common/flash.cuh", "max(0, args.step - args.window)", "0", Check::Orders, CHAINS),
    mutant("flash_attention.cu", "  __syncthreads();  // the queries", "  // the queries", Check::Races, CHAINS),
    mutant(
        "flash_attention_backward.cu",
        "args.own_dk[d] += dk[i] * args.scale",
        "args.own_dk[d] += 0",
        Check::Orders,
        CHAINS,
    ),
    mutant("flash_attention_backward.cu", "dq[r][i] = fmaf(dscore,", "dq[r][i] = fmaf(0,", Check::Orders, CHAINS),
    mutant("flash_attention_backward.cu", "max(tile.first, tile.start)", "tile.first", Check::Orders, CHAINS),
    mutant("flash_attention_backward.cu", "1.0f, args.add)", "1.0f, 0)", Check::Orders, GROWN),
    mutant("take_rows.cu", "args.to[source] += args.from[at]", "args.to[at] += args.from[at]", Check::Orders, TAKE),
    mutant("distill_loss.cu", "if (own && i == int(column))", "if (own)", Check::Orders, LOSS),
    mutant("column_sums.cu", "sum += dy * args.x[source", "sum += dy * args.x[size_t(row)", Check::Orders, NORMS),
    // The join of blocks.
    mutant("common/memory.cuh", "return arrived == blocks", "return arrived + 1 == blocks", Check::Orders, ATTENTION),
    // Memory that is not the kernel's.
    mutant("keep_rows.cu", "column < args.hidden;", "column <= args.hidden;", Check::Addresses, KEEP),
    mutant("common/finish.cuh", "output < projection.outputs ? sums", "true ? sums", Check::Addresses, FINISH),
    mutant("random_weights.cu", "unit < args.elements / 8", "unit <= args.elements / 8", Check::Addresses, RANDOM),
    mutant("residual.cu", "if (output < hidden) {", "if (output < hidden + 8) {", Check::Addresses, PROJECTION),
    mutant(SKINNY, "t * 8 + lane % 4 * 2 + i % 2]", "t * 8 + lane % 4 * 2 + i % 2 + 1]", Check::Addresses, PROJECTION),
];

/// Instances that the tests above do not need: they would only cost time to compile.
const SPARED_HEAD_DIMS: [usize; 5] = [32, 80, 96, 128, 256];

/// What the check must say, so that no mutant counts as seen because of something else.
fn signs(check: Check) -> &'static [&'static str] {
    match check {
        Check::Orders => &["running 1 test"], // and then it fails, or even crashes
        Check::Races => &["RACE, "],          // a panic tells of RUST_BACKTRACE
        Check::Addresses => &["AddressSanitizer", "runtime error"],
    }
}

/// The report of the mutant's test, if it failed to see the bug.
fn overlooked(workshop: &Workshop, number: usize, mutant: &Mutant) -> Option<String> {
    let cuda = workshop.copy(&format!("mutant-{number}"));
    replace(&cuda.join(mutant.file), mutant.from, mutant.to);
    let spared = if mutant.family.0 == WIDE_HEADS.0 { &[][..] } else { &SPARED_HEAD_DIMS };
    for head_dim in spared {
        let file = cuda.join(CHUNK);
        let text = std::fs::read_to_string(&file).unwrap();
        let instance = text.lines().find(|line| line.contains(&format!("body<Cache, {head_dim}>"))).unwrap();
        // All lines of the macro but the last go on.
        replace(&file, instance, if instance.ends_with('\\') { "\\" } else { "" });
    }
    let (test, kernels) = mutant.family;
    kernels.iter().for_each(|kernel| workshop.compile(mutant.check, &cuda.join(kernel)));
    let library = workshop.link(mutant.check, &cuda);
    let output = run_tests(&library, mutant.check, &["--exact", test, "--test-threads=1"]);
    let report = text(&output);
    let seen = !output.status.success() && signs(mutant.check).iter().any(|sign| report.contains(sign));
    (!seen).then(|| format!("{} -> {} in {}: not seen\n{report}", mutant.from, mutant.to, mutant.file))
}

#[test]
fn planted_bugs_are_seen() {
    let workshop = Workshop::new(&[Check::Orders, Check::Races, Check::Addresses]);
    let numbered: Vec<(usize, &Mutant)> = MUTANTS.iter().enumerate().collect();
    let complaints = share(&numbered, |&(number, mutant)| overlooked(&workshop, number, mutant));
    let complaints: Vec<String> = complaints.into_iter().flatten().collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// And without a bug nothing is seen: all kernels, all tests.
#[test]
fn checks_find_nothing_in_the_kernels_as_they_are() {
    let checks = [Check::Addresses, Check::Races];
    let workshop = Workshop::new(&checks);
    let copies = checks.map(|check| (check, workshop.copy(&format!("{check:?}-all"))));
    let kernels = |(check, cuda): &(Check, PathBuf)| files(cuda, "cu").into_iter().map(|file| (*check, file)).collect();
    let kernels: Vec<(Check, PathBuf)> = copies.iter().flat_map::<Vec<_>, _>(kernels).collect();
    share(&kernels, |(check, file)| workshop.compile(*check, file));
    share(&copies, |(check, cuda)| {
        let library = workshop.link(*check, cuda);
        let output =
            run_tests(&library, *check, &["--skip", "mutations::", "--skip", "emulator::", "--test-threads=1"]);
        assert!(output.status.success(), "{check:?}: {}", text(&output));
    });
}
