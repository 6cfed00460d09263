//! Wrong command lines and wrong files: exit code and message.

use crate::{model_folder, run, write};
use tempfile::TempDir;

#[test]
fn mistakes_get_an_exit_code_and_a_message() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    let not_json = write(&dir, "not.jsonl", "{\"prompt\": \"a\"}\nnot json\n");
    let no_prompt = write(&dir, "no-prompt.jsonl", "{\"text\": \"a\"}\n");
    let empty = write(&dir, "empty.jsonl", "\n");
    let garbage = write(&dir, "garbage.safetensors", "not tensors");
    let latin1 = write(&dir, "latin1.txt", b"caf\xe9");
    let long = write(&dir, "long.txt", "x = 1\n".repeat(2000));
    let several = model_folder(&dir, &[1, 3], &[("chat_template.jinja", "{{ messages[0].content }}")]);
    let unwritable = format!("{missing}/out.jsonl");
    let plot = format!("{missing}/plot.svg");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/llama");
    let p = ["generate", "-p", "x"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&p, more].concat() };

    #[rustfmt::skip]
    let usage: Vec<(Vec<&str>, &str)> = vec![
        (vec!["frobnicate"], "frobnicate"),
        (vec!["generate", "--tmep", "1"], "'--temp'"),
        (with(&["--temp", "-1"]), "0 or more"),
        (with(&["--temp", "hot"]), "--temp"),
        (with(&["--temperature", "nan"]), "0 or more"),
        (with(&["--temp", "inf"]), "0 or more"),
        (with(&["--top-k", "-3"]), "--top-k"),
        (with(&["--top-k", "1.5"]), "--top-k"),
        (with(&["--top-p", "0"]), "above 0 and at most 1"),
        (with(&["--top-p", "1.5"]), "above 0 and at most 1"),
        (with(&["--min-p", "-0.1"]), "from 0 to 1"),
        (with(&["--repeat-penalty", "0"]), "above 0"),
        (with(&["--presence-penalty", "much"]), "finite number"),
        (with(&["--frequency-penalty", "inf"]), "finite number"),
        (with(&["--logit-bias", "7"]), "15043+1"),
        (with(&["--logit-bias", "x+1"]), "15043+1"),
        (with(&["--logit-bias", "7=nan"]), "15043+1"),
        (with(&["--stop", ""]), "at least one character"),
        (with(&["--stop-token", "-1"]), "a token's id"),
        (with(&["--suppress-token", "a"]), "a token's id"),
        (vec!["detokenize", "-1"], "a token's id"),
        (with(&["--min-tokens", "-1"]), "0 or more"),
        (with(&["--show-prompt", "--output", "x"]), "--show-prompt"),
        (with(&["--stop", "\\q"]), "unknown escape"),
        (with(&["--seed", "-1"]), "--seed"),
        (with(&["-n", "-1"]), "--max-tokens"),
        (with(&["--logprobs", "-1"]), "--logprobs"),
        (with(&["-b", "-1"]), "--batch-size"),
        (with(&["--color", "always"]), "--show-drafts"),
        (vec!["generate", "-f", &no_prompt, "--output", &no_prompt], "overwrite"),
        (with(&["-s", "abc"]), "abc"),
        (with(&["-n", "0"]), "1 or more"),
        (with(&["-n", "many"]), "1 or more"),
        (with(&["-c", "-5"]), "from 0 to 16777216"),
        (with(&["-c", "999999999999"]), "from 0 to 16777216"),
        (with(&["--threads", "0"]), "from 1 to 1024"),
        (with(&["--threads", "100000"]), "from 1 to 1024"),
        (with(&["--batch-size", "0"]), "from 1 to 1024"),
        (with(&["--draft-max", "0"]), "from 1 to 1024"),
        (with(&["--samples", "0"]), "1 or more"),
        (with(&["--controller", "magic"]), "goodput-ts"),
        (with(&["--controller", "fixed:x"]), "fixed:4"),
        (with(&["--controller", "threshold:2"]), "from 0 to 1"),
        (with(&["--controller", "off:1"]), "expected nothing"),
        (with(&["--no-exit", "--exit", "2"]), "--no-exit"),
        (with(&["--no-exit", "--controller", "beta-ts"]), "--no-exit"),
        (with(&["--verify", "perhaps"]), "rejection"),
        (with(&["--device", "tpu"]), "cuda:N"),
        (with(&["--device", "cuda:first"]), "first"),
        (with(&["--gpu-memory-fraction", "0"]), "above 0 and at most 1"),
        (with(&["--gpu-memory-fraction", "1.5"]), "above 0 and at most 1"),
        (with(&["--gpu-memory-fraction", "half"]), "above 0 and at most 1"),
        (with(&["--no-graphs=yes"]), "--no-graphs"),
        (with(&["--prefill", "slow"]), "[possible values: exact, fast]"),
        (with(&["--prefill", "fast"]), "--prefill fast: the processor multiplies prompts in one way only (expected --prefill exact, or --device cuda)"),
        (with(&["--prefill", "fast", "--device", "cpu"]), "--prefill fast: the processor"),
        (vec!["chat", "-m", &several, "--exit", "1", "--prefill", "fast"], "--prefill fast: the processor"),
        (vec!["bench", "--prefill", "fast"], "--prefill fast: the processor"),
        (vec!["verify", "--prefill", "fast"], "--prefill"),
        (with(&["--file", "a.txt"]), "--file"),
        (with(&["--input", "a.jsonl"]), "--input"),
        (vec!["generate", "--input", &no_prompt, "--output", &no_prompt], "overwrite"),
        (vec!["generate", "--input", &no_prompt, "--resume"], "--output <FILE.jsonl>"),
        (vec!["generate", "-p", "x", "--output", &unwritable, "--resume"], "--resume without --input: "),
        (vec!["generate", "--input", &no_prompt, "--output", "-", "--resume"], "--resume with --output -: standard output keeps nothing"),
        (vec!["generate", "--input", "-", "--output", &unwritable, "--resume"], "--resume with --input -: a pipe cannot be read from its beginning again"),
        (vec!["generate", "--input", "/dev/null", "--output", &unwritable, "--resume"], "--input /dev/null: it cannot be read from its beginning again (expected a regular file)"),
        (with(&["--stats"]), "--stats tells how JSON answers are going: add --input FILE.jsonl"),
        (with(&["--metrics", "9090"]), "--metrics tells how JSON answers are going"),
        (with(&["--stats-json", "s.json"]), "--stats-json tells how JSON answers are going"),
        (with(&["--json", "--stats", "--quiet"]), "--quiet"),
        (with(&["--json", "--metrics", "65536"]), "expected a port from 0 to 65535, or a file (written as ./65536)"),
        (with(&["--json", "--metrics", "-"]), "expected a file, a port or ADDRESS:PORT"),
        (vec!["generate", "--input", &no_prompt, "--metrics", &no_prompt], "overwrite the file of --input"),
        (vec!["generate", "--input", &no_prompt, "--output", &unwritable, "--stats-json", &unwritable], "overwrite the file of --output"),
        (with(&["--json", "--stats-json", "same", "--metrics", "./same"]), "overwrite the file of --stats-json"),
        (with(&["--cache-tokens", "0"]), "1 or more"),
        (with(&["-b", "automatic"]), "from 1 to 1024, or auto"),
        (with(&["--logprobs", "3"]), "--json"),
        (with(&["--json", "--show-drafts"]), "--show-drafts"),
        (with(&["--color", "sometimes"]), "always"),
        (vec!["generate", "-p"], "--prompt"),
        (vec!["bench", "--controllers", "off,,fixed:1"], "expected one of"),
        (vec!["bench", "--output-format", "xml"], "jsonl"),
        (vec!["bench", "--temp", "1", "--verify", "rejection"], "coupled"),
        (vec!["bench", "-r", "0"], "1 or more"),
        (vec!["verify", "--temp", "0"], "above 0"),
        (vec!["verify", "-p", "a", "--input", "b"], "--input"),
        (vec!["completions", "tcsh"], "bash"),
        (vec!["completions"], "SHELL"),
    ];
    #[rustfmt::skip]
    let failed: Vec<(Vec<&str>, &str)> = vec![
        (vec!["generate", "-p", "x", "-m", missing], missing),
        (vec!["inspect", "-m", missing], missing),
        (vec!["generate", "-m", fixture, "-p", "x"], "tokenizer.json"),
        (vec!["generate", "-f", missing], missing),
        (vec!["generate", "-f", &latin1], "latin1.txt"),
        (vec!["generate", "-f", &long], "raise --ctx-size"),
        (vec!["generate", "--input", missing], missing),
        (vec!["generate", "-p", "x", "--output", &unwritable], "out.jsonl"),
        (vec!["generate", "-p", "x", "--exit", "7"], "exit blocks 1, 2, 3"),
        (vec!["generate", "-p", "x", "--exit", "0"], "exit blocks 1, 2, 3"),
        (vec!["generate", "-p", "x", "--exit", missing], missing),
        (vec!["generate", "-p", "x", "--exit", &garbage], "garbage.safetensors"),
        (vec!["generate", "-p", "x", "-m", &several, "--exit", "2"], "exit-2.safetensors"),
        // No such GPU, no driver, or no kernels in this build.
        (vec!["generate", "-p", "x", "--device", "cuda:99"], "device: cuda:99: "),
        (vec!["generate", "-p", "x", "--device", "cuda:99", "--prefill", "fast"], "device: cuda:99: "),
        (vec!["generate", "-p", "x", "--logit-bias", "4096+1"], "4096"),
        (vec!["generate", "-p", "x", "--system", "y"], "chat template"),
        (vec!["generate", "-p", "x", "-c", "1"], "context"),
        (vec!["chat"], "eesd-run generate"),
        (vec!["bench", "--input", missing], missing),
        (vec!["bench", "--input", &not_json], "not.jsonl:2"),
        (vec!["bench", "--input", &no_prompt], "no-prompt.jsonl:1"),
        (vec!["bench", "--input", &empty], "no prompts"),
        (vec!["bench", "--prompts", "1", "-n", "4", "-r", "1", "--controllers", "off", "--plot", &plot], "plot.svg"),
        (vec!["bench", "--prompts", "1", "-n", "4", "-r", "1", "--controllers", "off", "--trace", &plot], "plot.svg"),
        (vec!["verify", "--input", &not_json], "not.jsonl:2"),
        (vec!["verify", "-p", "x", "-c", "2"], "prompt 0 has 2 tokens"),
        (vec!["verify", "-p", "x", "-c", "3"], "prompt 0 has 2 tokens"),
        (vec!["bench", "-c", "3"], "prompt 0: the prompt has"),
    ];
    for (code, cases) in [(2, usage), (1, failed)] {
        for (args, fragment) in cases {
            let run = run(&args);
            assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
            assert_eq!(run.stdout, "", "{args:?}: nothing but text belongs on standard output");
            let errors: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(errors.len(), 1, "{args:?}: one line says what is wrong: {}", run.stderr);
            assert!(errors[0].contains(fragment), "{args:?}: {fragment:?} is not in {:?}", errors[0]);
        }
    }
}
