//! `graccl plan`: the tables, JSON, pictures and errors.

mod common;

use common::*;
use serde_json::Value;

fn plan(args: &[&str]) -> String {
    let o = run(&[&["plan"], args].concat());
    assert!(o.status.success(), "{}", err(&o));
    out(&o)
}

fn refused(args: &[&str]) -> String {
    let o = run(&[&["plan"], args].concat());
    assert_eq!(o.status.code(), Some(2), "{}", err(&o));
    err(&o)
}

const ALEXNET: [&str; 8] = ["--model", "alexnet", "--ranks", "64", "--network", "10gbe", "--algo", "ring"];

#[test]
fn a_plan_and_what_others_do() {
    let text = plan(&[&ALEXNET[..], &["--mode", "all_reduce"]].concat());
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    // Two buckets: the fully connected layers but the largest, and the rest.
    assert!(rows.iter().any(|r| r.len() > 7 && r[..3] == ["1", "13-16", "83513248"]), "{text}");
    assert!(rows.iter().any(|r| r.len() > 7 && r[..3] == ["2", "1-12", "160890112"]), "{text}");
    // Times of others' simulations of the same trace, with a tensor per layer where that matters.
    for (name, ms) in [("one_bucket", "328.042"), ("25MiB", "303.491"), ("mg_wfbp", "305.538")] {
        assert!(rows.iter().any(|r| r.len() > 3 && r[0] == name && r[2] == ms), "{name}: {text}");
    }
    assert!(text.contains("best all_reduce                        2       296.448"), "{text}");
    assert!(text.contains("# Bound by the network"), "{text}");
}

#[test]
fn json_says_the_same() {
    let v: Value = serde_json::from_str(&plan(&[&ALEXNET[..], &["--json"]].concat())).unwrap();
    let sum: u64 = v["buckets"].as_array().unwrap().iter().map(|b| b["bytes"].as_u64().unwrap()).sum();
    assert_eq!((v["bytes"].as_u64(), v["gradients"].as_u64()), (Some(sum), Some(16)));
    let us = v["iteration_us"].as_f64().unwrap();
    let compared = v["compared"].as_array().unwrap();
    assert!(compared.iter().all(|c| c["iteration_us"].as_f64().unwrap() >= us * (1.0 - 1e-9)));
    assert_eq!(compared.iter().filter(|c| c["name"].as_str().unwrap().starts_with("best ")).count(), 3);
    assert!(v["bound_us"]["compute"].as_f64().unwrap() <= us);
}

/// The bytes that are sent as int8.
fn packed(v: &Value) -> u64 {
    let list = v["buckets"].as_array().unwrap().iter().filter(|b| b["wire"] == "int8");
    list.map(|b| b["bytes"].as_u64().unwrap()).sum()
}

#[test]
fn buckets_are_packed_where_that_pays() {
    let json = |args: &[&str]| -> Value {
        let all = ["--model", "resnet50", "--ranks", "8", "--mode", "all_reduce", "--json"];
        serde_json::from_str(&plan(&[&all[..], args].concat())).unwrap()
    };
    let ms = |v: &Value| v["iteration_us"].as_f64().unwrap() / 1e3;
    // A slow network, published and simulated; nothing is packed that need not be.
    for network in ["1gbe", "1g-ethernet"] {
        let (whole, less) = (json(&["--network", network]), json(&["--network", network, "--wire", "int8"]));
        assert_eq!(packed(&whole), 0);
        assert!(packed(&less) > 100_000_000 && ms(&less) < 0.6 * ms(&whole), "{} {}", ms(&less), ms(&whole));
    }
    // On one host there is nothing to pack; the plan is the same.
    let one = ["--network", "cpu-2core", "--hosts", "1"];
    let (whole, less) = (json(&one), json(&[&one[..], &["--wire", "int8"]].concat()));
    assert_eq!((packed(&less), ms(&less)), (0, ms(&whole)));
    let e = refused(&[
        "--model",
        "alexnet",
        "--ranks",
        "8",
        "--network",
        "1gbe",
        "--type",
        "f16",
        "--wire",
        "half",
    ]);
    assert!(e.contains("--wire packs float"), "{e}");
    let e = refused(&["--model", "alexnet", "--ranks", "8", "--network", "10gbe-osu", "--wire", "half"]);
    assert!(e.contains("packed messages"), "{e}");
    let e = refused(&["--model", "alexnet", "--ranks", "8", "--network", "p40-100g", "--inside", "pcie3"]);
    assert!(e.contains("--inside pcie3"), "{e}");
}

#[test]
fn a_model_file_and_a_picture() {
    let dir = std::env::temp_dir().join(format!("graccl-plan-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (model, picture) = (dir.join("model.csv"), dir.join("plan.svg"));
    let rows = "tensor,elements,type,ready_us,forward_us\nb<c,1000,f32,100,50\na,1000000,f32,300,80\n";
    std::fs::write(&model, rows).unwrap();
    let files = [model.to_str().unwrap(), picture.to_str().unwrap()];
    let text = plan(&["--model", files[0], "--ranks", "4", "--network", "roce100", "--svg", files[1]]);
    assert!(text.contains("2 gradients, 4004000 bytes"), "{text}");
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains(">communication<") && svg.contains("backward ends"), "{svg}");
    assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    std::fs::write(&model, "tensor,elements,type,ready_us\nb,1000,f32,100\na,1,f32,3\n").unwrap();
    let e = refused(&["--model", files[0], "--ranks", "4", "--network", "roce100"]);
    assert!(e.contains("ready before the tensor above") && e.contains("[a, /"), "{e}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn errors_say_what_to_write() {
    let e = refused(&["--model", "vgg17", "--ranks", "4", "--network", "10gbe"]);
    assert!(e.contains("vgg17") && e.contains("vgg16"), "{e}");
    let e = refused(&["--model", "vgg16", "--ranks", "4", "--network", "11gbe"]);
    assert!(e.contains("11gbe") && e.contains("10gbe") && e.contains("or a cluster"), "{e}");
    let e = refused(&["--model", "vgg16", "--ranks", "4", "--hosts", "3", "--network", "10gbe"]);
    assert!(e.contains("spread evenly"), "{e}");
    let e = refused(&["--model", "vgg16", "--ranks", "4", "--network", "10gbe", "--mode", "magic"]);
    assert!(e.contains("reduce_scatter_all_gather"), "{e}");
    let noisy = std::env::temp_dir().join(format!("graccl-noisy-{}.toml", std::process::id()));
    let text =
        "hosts = 1\nranks_per_host = 2\n[inside]\nsend = { gbs = 1 }\nlatency = 10000\n[noise]\ncore = 0.1\n";
    std::fs::write(&noisy, text).unwrap();
    let e = refused(&["--model", "vgg16", "--ranks", "2", "--network", noisy.to_str().unwrap()]);
    assert!(e.contains("this cluster has [noise]") && e.contains("take [noise] out of its file"), "{e}");
    std::fs::remove_file(&noisy).unwrap();
}
