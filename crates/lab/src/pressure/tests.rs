//! A short run on a small machine.

use super::bench::Bench;
use super::command::PressureOptions;

#[test]
fn a_short_run_reclaims_and_loses_nothing() {
    let options = PressureOptions { cpus: 2, ram: 32 << 20, seconds: 2, seed: 7, json: None, html: None };
    let mut lines = 0;
    let report = Bench::boot(&options).unwrap().run(|_| lines += 1).unwrap();
    assert!(report.is_clean(), "{}", report.text());
    assert!(report.reclaimed_by_kswapd + report.reclaimed_directly > 1000, "{}", report.text());
    assert!(report.evictions > 0 && lines > 1);
    let page = super::report::html(&report);
    assert!(page.contains("Under pressure") && page.ends_with("</html>\n"));
}
