//! The dashboard and the alert rules of the Helm chart, held together with the catalog of metrics and with
//! `docs/metrics.md`. `UPDATE_DOCS=1 cargo test -p soci-telemetry --test kubernetes` writes the dashboard.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use soci_telemetry::catalog::{self, Kind, Metric};

/// Columns of Grafana's grid.
const COLUMNS: usize = 24;
/// Panels beside each other.
const ACROSS: usize = 3;
const HEIGHT: usize = 8;
/// Labels with a value for each layer or image, over which a panel sums up.
const MANY: [&str; 4] = ["layer", "digest", "mountpoint", "image"];

/// Rows of the dashboard: title, and how the names of its metrics begin. The first that fits counts.
const ROWS: [(&str, &[&str]); 7] = [
    (
        "Images and layers",
        &["soci_snapshot_", "soci_layers_", "soci_build_"],
    ),
    ("Reads of containers", &["soci_fs_", "soci_fuse_"]),
    ("Fetching", &["soci_fetch_"]),
    ("Layers on disk", &["soci_layer_store_"]),
    ("Start-up profiles", &["soci_profile"]),
    ("Whole images", &["soci_eager_"]),
    ("The daemon", &[""]),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap()
}

/// Grafana's unit for a metric, and for its rate.
fn unit(metric: &Metric) -> &'static str {
    match (metric.unit, metric.kind) {
        ("bytes", Kind::Counter) if is_rate(metric) => "Bps",
        ("bytes", _) => "bytes",
        ("milliseconds", Kind::Counter) => "ms",
        ("milliseconds", _) => "ms",
        ("microseconds", _) => "µs",
        ("seconds", Kind::Gauge) => "dateTimeAsIso",
        ("seconds", _) => "percentunit",
        (_, Kind::Counter) => "ops",
        _ => "short",
    }
}

/// Whether it grows by events. The sizes of layers are counters by name only.
fn is_rate(metric: &Metric) -> bool {
    metric.kind == Kind::Counter && !metric.labels.contains(&"mountpoint")
}

/// The query of a panel, and the text of its legend.
fn query(metric: &Metric) -> (String, String) {
    let name = metric.name;
    let labels = metric.labels.iter().filter(|label| !MANY.contains(label));
    let mut labels: Vec<&str> = labels.copied().collect();
    let legend = |labels: &[&str]| match labels {
        [] => name.to_owned(),
        labels => labels
            .iter()
            .map(|label| format!("{{{{{label}}}}}"))
            .collect::<Vec<_>>()
            .join(" "),
    };
    let chosen = format!("{name}{{node=~\"$node\"}}");
    let text = legend(&labels);
    let expression = match metric.kind {
        Kind::Histogram => {
            labels.push("le");
            let by = labels.join(", ");
            let buckets = format!("{name}_bucket{{node=~\"$node\"}}");
            format!("histogram_quantile(0.99, sum by ({by}) (rate({buckets}[$__rate_interval])))")
        }
        _ if labels.is_empty() && is_rate(metric) => {
            format!("sum(rate({chosen}[$__rate_interval]))")
        }
        _ if labels.is_empty() => format!("sum({chosen})"),
        _ if is_rate(metric) => {
            let by = labels.join(", ");
            format!("sum by ({by}) (rate({chosen}[$__rate_interval]))")
        }
        _ => format!("sum by ({}) ({chosen})", labels.join(", ")),
    };
    (expression, text)
}

fn panel(metric: &Metric, id: usize, x: usize, y: usize) -> Value {
    let (expression, legend) = query(metric);
    let title = match metric.kind {
        Kind::Histogram => format!("{}, 99th percentile", metric.name),
        _ => metric.name.to_owned(),
    };
    json!({
        "id": id,
        "type": "timeseries",
        "title": title,
        "description": metric.help,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": COLUMNS / ACROSS, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit(metric), "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [{"refId": "A", "expr": expression, "legendFormat": legend}],
    })
}

fn dashboard() -> Value {
    let (mut panels, mut id, mut y) = (Vec::new(), 0, 0);
    let mut next = || {
        id += 1;
        id
    };
    let row_of = |metric: &Metric| {
        let fits = |beginnings: &&[&str]| {
            beginnings
                .iter()
                .any(|start| metric.name.starts_with(start))
        };
        ROWS.iter().position(|(_, beginnings)| fits(beginnings))
    };
    for (number, (title, _)) in ROWS.iter().enumerate() {
        let metrics: Vec<_> = catalog::ALL
            .iter()
            .filter(|metric| row_of(metric) == Some(number))
            .collect();
        let grid = json!({"x": 0, "y": y, "w": COLUMNS, "h": 1});
        panels.push(
            json!({"id": next(), "type": "row", "title": title, "gridPos": grid, "panels": []}),
        );
        y += 1;
        for line in metrics.chunks(ACROSS) {
            for (column, metric) in line.iter().enumerate() {
                panels.push(panel(metric, next(), column * (COLUMNS / ACROSS), y));
            }
            y += HEIGHT;
        }
    }
    let variable = |name: &str, kind: &str, query: &str| {
        json!({"name": name, "type": kind, "query": query, "refresh": 1, "multi": kind == "query",
            "includeAll": kind == "query", "allValue": ".*",
            "datasource": {"type": "prometheus", "uid": "${datasource}"}})
    };
    json!({
        "title": "SOCI snapshotter",
        "uid": "soci-snapshotter",
        "tags": ["soci-snapshotter"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [
            variable("datasource", "datasource", "prometheus"),
            variable("node", "query", "label_values(soci_build_info, node)"),
        ]},
        "panels": panels,
    })
}

#[test]
fn the_dashboard_shows_every_metric_of_the_catalog() {
    let path = "deploy/kubernetes/chart/files/dashboard.json";
    let text = serde_json::to_string_pretty(&dashboard()).unwrap() + "\n";
    for metric in catalog::ALL {
        assert!(text.contains(metric.name), "{}", metric.name);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(repository(path), &text).unwrap();
    }
    assert_eq!(
        read(path),
        text,
        "write it: UPDATE_DOCS=1 cargo test -p soci-telemetry --test kubernetes"
    );
}

#[test]
fn the_alert_rules_are_those_of_the_page_for_operators_and_name_metrics_that_exist() {
    let page = read("docs/metrics.md");
    let documented: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "## Worth an alarm")
        .filter_map(|line| {
            line.strip_prefix("| `")?
                .split_once("` |")
                .map(|(left, _)| left)
        })
        .collect();
    let rules = read("deploy/kubernetes/chart/files/alerts.yaml");
    let expressions: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    let mut documented: Vec<_> = documented
        .into_iter()
        .filter(|expression| expression.starts_with("increase") || expression.starts_with("soci"))
        .collect();
    let mut given = expressions.clone();
    documented.sort_unstable();
    given.sort_unstable();
    assert_eq!(given, documented, "docs/metrics.md, Worth an alarm");
    for expression in expressions {
        let known = |metric: &&Metric| expression.contains(metric.name);
        assert!(catalog::ALL.iter().any(known), "{expression}");
    }
}
