//! Hidden states on disk: training is the same with them and without, whatever happens to the files.

use crate::interruptions::limited;
use crate::{BUNDLED, Place, ok, stderr};
use std::fs;
use std::path::Path;

const RUN: [&str; 6] = ["--steps", "12", "--measure-every", "6", "--input-matrix", "ridge"];

fn block(place: &Place, output: &str) -> Vec<u8> {
    place.read(&format!("{output}/exit-2.safetensors"))
}

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&RUN[..], more].concat()
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn what_is_kept_changes_no_bit() {
    let place = Place::new();
    ok(place.training("none", &with(&["--keep-states", "0"])));
    assert!(!place.path("none/states").exists());
    ok(place.training("all", &RUN));
    let told = ok(place.training("some", &with(&["--keep-states", "100K"])));
    assert!(told.contains("not all hidden states were kept"), "{told}");
    let held: u64 = fs::read_dir(place.path("some/states")).unwrap().map(|entry| len(&entry.unwrap().path())).sum();
    assert!((50_000..=100 << 10).contains(&held), "{held}");
    let expected = block(&place, "none");
    assert!([block(&place, "all"), block(&place, "some")].iter().all(|found| *found == expected));
}

/// Another layer reads the last hidden states of the first one's run, and a second run of the same layer writes nothing.
#[test]
fn runs_share_states() {
    let place = Place::new();
    let states = place.path("shared");
    let shared = ["--states", states.to_str().unwrap()];
    ok(place.training("first", &[&RUN[..], &shared].concat()));
    let (last, layer) = (states.join("last.states"), states.join("layer-2.states"));
    let before = [&last, &layer].map(|path| fs::read(path).unwrap());
    ok(place.training("again", &[&RUN[..], &shared].concat()));
    assert_eq!(block(&place, "again"), block(&place, "first"));
    ok(place.training("third", &[&RUN[..], &shared, &["-N", "3"]].concat()));
    assert_eq!([&last, &layer].map(|path| fs::read(path).unwrap()), before);
    assert_eq!(len(&states.join("layer-3.states")), len(&layer));
    ok(place.training("alone", &[&RUN[..], &["-N", "3"]].concat()));
    assert_eq!(place.read("third/exit-3.safetensors"), place.read("alone/exit-3.safetensors"));
}

/// Cut at any place, or with a byte changed: never used as it is.
#[test]
fn damaged_states_are_made_anew() {
    let place = Place::new();
    ok(place.training("whole", &RUN));
    let expected = block(&place, "whole");
    let files = ["last.states", "layer-2.states"].map(|name| place.read(&format!("whole/states/{name}")));
    for (number, part) in [0.0, 0.0001, 0.3, 0.7, 0.9999].into_iter().enumerate() {
        for cut in [true, false] {
            let output = format!("damaged-{number}-{cut}");
            fs::create_dir_all(place.path(&output).join("states")).unwrap();
            for (name, whole) in ["last.states", "layer-2.states"].iter().zip(&files) {
                let at = (part * whole.len() as f64) as usize;
                let mut damaged = whole.clone();
                if cut {
                    damaged.truncate(at);
                } else {
                    damaged[at.max(20)] ^= 4;
                }
                fs::write(place.path(&output).join("states").join(name), damaged).unwrap();
            }
            ok(place.training(&output, &RUN));
            assert!(block(&place, &output) == expected, "{output}");
        }
    }
}

/// A model of the same shape whose weights differ in one bit gets states of its own.
#[test]
fn states_of_another_model_are_told_and_replaced() {
    let place = Place::new();
    let model = place.path("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(BUNDLED).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let mut weights = fs::read(model.join("model.safetensors")).unwrap();
    let middle = weights.len() / 2;
    weights[middle] ^= 8;
    fs::write(model.join("model.safetensors"), weights).unwrap();
    let states = place.path("shared");
    let shared = ["--states", states.to_str().unwrap()];
    ok(place.training("first", &[&RUN[..], &shared].concat()));
    let other = ["-m", model.to_str().unwrap()];
    let told = ok(place.training("second", &[&RUN[..], &shared, &other].concat()));
    assert!(told.contains("last.states: made anew") && told.contains("layer-2.states: made anew"), "{told}");
    ok(place.training("alone", &[&RUN[..], &other].concat()));
    assert_eq!(block(&place, "second"), block(&place, "alone"));
}

/// A disk without room for them: an error with the path and what to do, and what was written is used.
#[test]
#[cfg(target_os = "linux")]
fn a_disk_without_room_for_states_is_an_error() {
    let place = Place::new();
    ok(place.training("whole", &RUN));
    let output = limited(&place.training("out", &RUN), 64, false);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(".states: ") && told.contains("--keep-states 0"), "{told}");
    let left = place.read("out/states/layer-2.states");
    assert!(left.len() > 30_000, "{}", left.len());
    ok(place.training("out", &RUN));
    assert!(place.read("out/states/layer-2.states").starts_with(&left), "what was there was thrown away");
    assert_eq!(block(&place, "out"), block(&place, "whole"));
}
