//! A recurrent exit block beside the model: it drafts, changes no answer, and is told of.

use super::*;
use crate::recurrent_blocks::recurrent;
use eesd::load::{Checkpoint, ExitBlock};
use eesd::model::Dtype;
use serde_json::json;

#[test]
fn a_recurrent_block_drafts_and_changes_no_answer() {
    for matrices in [Some(Dtype::BF16), None] {
        let dir = TempDir::new().unwrap();
        let folder = model_folder(&dir, &[], &[]);
        let model = Checkpoint::open(Path::new(&folder)).unwrap();
        let bundled = model.open_exit(&Path::new(BUNDLED).join("exit-2.safetensors")).unwrap();
        let block = recurrent(bundled.weights(), matrices);
        ExitBlock::save(&Path::new(&folder).join("exit-2.safetensors"), &block, bundled.metadata(), &model).unwrap();
        drop((bundled, model));

        let with = |more: &[&str]| generate(&[&["-m", &folder], more].concat());
        for more in [&["--temperature", "0"][..], &["--temperature", "0.8", "--seed", "4", "--verify", "coupled"]] {
            let plain = with(&[more, &["--no-exit"]].concat()).stdout;
            for controller in ["fixed:4", "goodput-ts"] {
                let drafted = with(&[more, &["--draft", "exit", "--controller", controller]].concat());
                assert_eq!(drafted.stdout, plain, "{more:?}, {controller}");
            }
        }
        let report: Value = serde_json::from_str(&ok(&["inspect", "-m", &folder, "--json"]).stdout).unwrap();
        let block = &report["exit_blocks"][0];
        assert_eq!((&block["own_input"], &block["metadata"]["format"]), (&json!(true), &json!("eesd-exit-2")));
        let [first, later] = ["draft_step_cost", "recurrent_draft_step_cost"].map(|key| block[key].as_f64().unwrap());
        assert!(later < first, "{later} after {first}");
        let text = ok(&["inspect", "-m", &folder]).stdout;
        let cost =
            format!("costs {first:.3} plain steps, a recurrent one, after a round's first, {later:.3}, by bytes");
        assert!(text.contains(&cost) && text.contains("input matrix"), "{text}");
    }
    let report: Value = serde_json::from_str(&ok(&["inspect", "-m", BUNDLED, "--json"]).stdout).unwrap();
    assert_eq!(report["exit_blocks"][0]["recurrent_draft_step_cost"], Value::Null);
}
