//! Tests of the subcommand.

use super::recorded::Sizes;
use super::{Algorithm, Source, ZramOptions, measure};
use kmem_hosted::Compressor;

fn options(algorithm: Algorithm) -> ZramOptions {
    ZramOptions {
        files: Vec::new(),
        algorithm,
        recompress: false,
        moves: 0,
        chain: 12,
        classes: false,
        json: None,
        html: None,
    }
}

#[test]
fn the_recorded_workload_is_denser_than_in_linux_at_each_stage() {
    // P03, ZS-41
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        let options = options(algorithm);
        let report = measure(&Source::new(&options).unwrap(), &options).unwrap();
        assert_eq!((report.pages, report.verified, report.damaged), (102_912, 3 * 102_912, 0));
        for stage in &report.stages {
            let linux = stage.linux.unwrap();
            assert_eq!((stage.objects, stage.bytes_stored), (linux.objects, linux.bytes_stored), "{}", stage.name);
            assert!(stage.bytes_held < linux.bytes_held, "{}: {} frames", stage.name, stage.bytes_held / 4096);
        }
        assert!(report.stages[0].density() >= 0.985 && report.stages[2].density() >= 0.985);
        let field = |line: &str, nth: usize| line.split_whitespace().nth(nth).unwrap().parse::<u64>().unwrap();
        let filled = &report.stages[0];
        let (ours, linux) = (&filled.mm_stat, filled.linux_mm_stat.as_ref().unwrap());
        for nth in [0, 1, 5, 7] {
            assert_eq!(field(ours, nth), field(linux, nth));
        }
        assert_eq!(field(ours, 5), 422);
        let text = report.text(true);
        assert!(text.contains("Linux density") && text.contains("pages_per_zspage"), "{text}");
        assert!(super::report::html(&report).contains("Written by <code>cargo lab zram</code>"));
    }
}

#[test]
fn files_are_cut_stored_and_brought_back() {
    let folder = std::env::temp_dir().join(format!("lab-zram-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("text"), include_str!("measure.rs").repeat(20)).unwrap();
    std::fs::write(folder.join("sub/short"), [1, 2, 3]).unwrap();
    std::fs::write(folder.join("sub/empty"), []).unwrap();
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        let options = ZramOptions { files: vec![folder.clone()], recompress: true, moves: 1, ..options(algorithm) };
        let source = Source::new(&options).unwrap();
        let report = measure(&source, &options).unwrap();
        assert_eq!(report.pages, (include_str!("measure.rs").len() as u64 * 20).div_ceil(4096) + 1);
        assert_eq!((report.verified, report.damaged), (3 * report.pages, 0));
        let names: Vec<_> = report.stages.iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["filled", "recompressed", "half discarded", "compacted"]);
        assert!(report.stages[0].bytes_stored < report.pages * 4096 * 2 / 3);
        assert!(report.stages[1].bytes_stored <= report.stages[0].bytes_stored);
        assert!(serde_json::to_string(&report).unwrap().contains("\"damaged\":0"));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let gone = ZramOptions { files: vec![folder], ..options(Algorithm::Lz4) };
    assert!(Source::new(&gone).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn damage_to_a_recorded_object_shows() {
    let sizes = Sizes::of(Algorithm::Lz4);
    let (mut buffer, mut page) = ([0; 4096], [0; 4096]);
    let len = sizes.compress(&sizes.page(5), &mut buffer).unwrap();
    sizes.decompress(&buffer[..len], &mut page).unwrap();
    assert_eq!(page, sizes.page(5));
    buffer[len - 1] ^= 1;
    assert!(sizes.decompress(&buffer[..len], &mut page).is_err());
    assert!(sizes.decompress(&[1, 2], &mut page).is_err());
}
