//! What operators may write into the file, and the errors for wrong values.

use std::path::Path;
use std::time::Duration;

use soci_config::{Config, ConfigError, ContentStoreType, DropPolicy, MetricsNetwork, Problem};

const FILE: &str = "/etc/soci/config.toml";

fn golden() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/v0.15-root/config-default.toml"
    );
    std::fs::read_to_string(path).unwrap()
}

fn parse(text: &str) -> Config {
    let loaded = Config::parse(text, Path::new(FILE)).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new(), "{text}");
    loaded.config
}

fn warnings(text: &str) -> Vec<String> {
    Config::parse(text, Path::new(FILE)).unwrap().warnings
}

fn problems(text: &str) -> Vec<Problem> {
    match Config::parse(text, Path::new(FILE)) {
        Err(ConfigError::Invalid { problems, .. }) => problems,
        other => panic!("{text} gave {other:?}"),
    }
}

#[test]
fn the_defaults_print_as_v0_15_prints_them_and_then_our_own_tables() {
    let ours = Config::default().to_toml();
    let own = ours
        .strip_prefix(&golden())
        .unwrap_or_else(|| panic!("differs from the golden file:\n{ours}"));
    let own: toml::Table = own.parse().unwrap();
    assert_eq!(
        own.keys().collect::<Vec<_>>(),
        [
            "ecr_keychain",
            "fetch",
            "holder",
            "kubelet_credential_providers",
            "layer_store",
            "limits",
            "profile",
            "start_hints",
            "trust"
        ],
        "v0.15 knows no other tables of ours"
    );
}

#[test]
fn the_defaults_parse_back_to_the_defaults_and_so_do_v0_15s() {
    assert_eq!(parse(&Config::default().to_toml()), Config::default());
    assert_eq!(parse(&golden()), Config::default());
    assert_eq!(parse(""), Config::default());
}

/// Every key with another value than its default.
fn everything() -> String {
    let mut text = String::new();
    for line in golden().lines() {
        let changed = match line.split_once(" = ") {
            None => line.to_owned(),
            Some((key, value)) => {
                let other = match (key.trim(), value) {
                    ("metrics_address", _) => "'/run/metrics.sock'",
                    ("metrics_network", _) => "'unix'",
                    ("metadata_store", _) => "'db-multi'",
                    ("drop_policy", _) => "'oldest'",
                    ("type", _) => "'containerd'",
                    ("concurrent_download_chunk_size", _) => "'8mb'",
                    ("MinWaitMsec" | "min_wait_msec", _) => "7",
                    ("max_concurrent_downloads" | "max_concurrent_unpacks", _) => "40",
                    (_, "true") => "false",
                    (_, "false") => "true",
                    (_, text) if text.starts_with('\'') => "'/other'",
                    (_, _) => "17",
                };
                format!("{key} = {other}")
            }
        };
        text.push_str(&changed);
        text.push('\n');
        if line.trim() == "[resolver]" {
            text.push_str("plain_http_redirects = true\nconfig_path = '/a:/b'\n");
        }
    }
    text + r#"
[pull_modes.parallel_pull_unpack.decompress_streams.gzip]
path = "/bin/sh"
args = ["-c", "it's \"quoted\""]
[[resolver.host."docker.io".mirrors]]
host = "https://mirror.example.com/v2/cache"
insecure = true
request_timeout_sec = -1
[[resolver.host."docker.io".mirrors]]
host = "other:5000"
[fetch]
memory_budget_bytes = 33554432
max_readahead_bytes = 1048576
[layer_store]
max_size_bytes = 1000
max_size_percent = 50
min_free_percent = 7
sharing = "isolated"
sync_unpacked = false
[limits]
unpack_memory_bytes = 1
unpack_output_bytes = 2
unpack_first_byte_sec = 3
unpack_floor_bytes_per_sec = 4
eager_memory_bytes = 8388608
ztoc_bytes = 1000
tree_bytes = 2000
image_tree_bytes = 3000
total_tree_bytes = 4000
[holder]
enable = false
abandon_after_sec = 5
resend = false
require_all_mounts = true
[kubelet_credential_providers]
config_path = "/c.yaml"
bin_dir = "/b"
[ecr_keychain]
enable_keychain = true
[profile]
enable = false
index = false
referrers = false
publish = true
min_link_bytes_per_sec = 4
max_size_bytes = 1000
[start_hints]
enable = false
max_unread_bytes = 1
max_unread_percent = 2
min_link_bytes_per_sec = 3
fill_page_cache = false
[trust]
explicit_index = true
lazy_registries = ["registry.example.com/team"]
without_image_store = "allow"
"#
}

#[test]
fn no_key_is_read_and_then_forgotten() {
    let config = parse(&everything());
    let dumped = config.to_toml();
    assert_eq!(parse(&dumped), config, "{dumped}");

    let default: toml::Table = Config::default().to_toml().parse().unwrap();
    let dumped: toml::Table = dumped.parse().unwrap();
    fn same(path: &str, a: &toml::Table, b: &toml::Table) -> Vec<String> {
        a.iter()
            .flat_map(|(key, value)| match (value, b.get(key)) {
                (toml::Value::Table(a), Some(toml::Value::Table(b))) => {
                    same(&format!("{path}{key}."), a, b)
                }
                (a, Some(b)) if a == b => vec![format!("{path}{key}")],
                (_, Some(_)) => Vec::new(),
                (_, None) => vec![format!("{path}{key} is missing")],
            })
            .collect()
    }
    assert_eq!(
        same("", &default, &dumped),
        Vec::<String>::new(),
        "keys whose value did not arrive"
    );
    let host = &config.resolver.host["docker.io"];
    assert_eq!(host.mirrors[0].request_timeout_sec, None);
    assert_eq!(host.mirrors[1].request_timeout_sec, Some(0));
    assert!(config.resolver.plain_http_redirects);
    assert_eq!(config.resolver.config_path, "/a:/b");
    let gzip = &config.pull_modes.parallel_pull_unpack.decompress_streams["gzip"];
    assert_eq!(gzip.args, ["-c", "it's \"quoted\""]);
}

#[test]
fn keys_and_tables_are_found_in_any_case() {
    let text = everything();
    let shouted: String = text
        .lines()
        .map(|line| match line.split_once(" = ") {
            Some((key, value)) => format!("{} = {value}\n", key.to_uppercase()),
            // Names that the operator chooses keep their case.
            None if line.contains("docker.io") || line.contains("gzip") => format!("{line}\n"),
            None => format!("{}\n", line.to_uppercase()),
        })
        .collect();
    assert_eq!(
        parse(
            &shouted
                .replace("[RESOLVER]", "[resolver]")
                .replace("[PULL_MODES", "[pull_modes")
                .replace("PARALLEL_PULL_UNPACK]", "parallel_pull_unpack]")
        ),
        parse(&text)
    );
    assert_eq!(parse("[HTTP]\nmaxretries = 3").http.max_retries, 3);
}

#[test]
fn values_arrive_in_their_units_and_meanings() {
    let config = parse(
        "mount_timeout_sec = 5\nmax_concurrency = -1\nmetrics_network = 'unix'\n\
         [http]\nDialTimeoutMsec = 1500\nMaxRetries = 0x10\n\
         [background_fetch]\nmax_queue_size = -1\ndrop_policy = 'oldest'\n\
         [content_store]\ntype = 'containerd'\nnamespace = 'k8s.io'\n",
    );
    assert_eq!(config.mount_timeout, Duration::from_secs(5));
    assert_eq!(config.max_concurrency, None);
    assert_eq!(config.metrics_network, MetricsNetwork::Unix);
    assert_eq!(config.http.dial_timeout, Duration::from_millis(1500));
    assert_eq!(config.http.max_retries, 16);
    assert_eq!(config.background_fetch.max_queue_size, None);
    assert_eq!(config.background_fetch.drop_policy, DropPolicy::Oldest);
    assert_eq!(config.content_store.kind, ContentStoreType::Containerd);
}

#[test]
fn zero_and_empty_mean_the_default_where_v0_15_says_so() {
    let zeros = "max_concurrency = 0\nmount_timeout_sec = 0\nmetrics_network = ''\nmetadata_store = ''\n\
                 [http]\nMaxRetries = 0\nRequestTimeoutMsec = 0\n[fuse]\nattr_timeout = 0\n\
                 [background_fetch]\nmax_queue_size = 0\nfetch_period_msec = 0\ndrop_policy = ''\n";
    assert_eq!(parse(zeros), Config::default());
}

#[test]
fn minus_one_means_no_retries_and_a_low_maximum_lowers_the_minimum() {
    let text =
        "[http]\nMaxRetries = -1\nMaxWaitMsec = 10\n[blob]\nmax_retries = -1\nmax_wait_msec = 20\n";
    let config = parse(text);
    assert_eq!((config.http.max_retries, config.blob.max_retries), (0, 0));
    assert_eq!(config.http.min_wait, Duration::from_millis(10));
    assert_eq!(config.blob.min_wait, Duration::from_millis(20));
    assert!(config.to_toml().contains("MaxRetries = -1"));
    assert_eq!(parse(&config.to_toml()), config);
}

/// v0.15 starts with -1 for each of its numbers: no time-out, no pause, nothing.
#[test]
fn every_number_of_v0_15_may_be_below_zero() {
    let text = "mount_timeout_sec = -1\nfuse_metrics_emit_wait_duration_sec = -1\n\
        resolve_result_entry = -1\nmax_concurrency = -1\nmetadata_insertion_chunk_size = -1\n\
        [http]\nMaxRetries = -1\nMinWaitMsec = -1\nMaxWaitMsec = -1\nDialTimeoutMsec = -1\n\
        ResponseHeaderTimeoutMsec = -1\nRequestTimeoutMsec = -1\n\
        [blob]\nvalid_interval = -1\nfetching_timeout_sec = -1\nmax_retries = -1\n\
        min_wait_msec = -1\nmax_wait_msec = -1\nmax_span_verification_retries = -1\n\
        [directory_cache]\nmax_lru_cache_entry = -1\nmax_cache_fds = -1\n\
        [fuse]\nattr_timeout = -1\nentry_timeout = -1\nnegative_timeout = -1\n\
        [background_fetch]\nsilence_period_msec = -1\nfetch_period_msec = -1\n\
        max_queue_size = -1\nemit_metric_period_sec = -1\n\
        [prefetch]\nmax_concurrency = -1\n\
        [pull_modes.parallel_pull_unpack]\nmax_concurrent_downloads = -1\n\
        max_concurrent_downloads_per_image = -1\nmax_concurrent_unpacks = -1\n\
        max_concurrent_unpacks_per_image = -1\n\
        [resolver]\nauth_client_ttl_sec = -1\n[snapshotter]\nmin_layer_size = -1\n";
    // Keys without effect are warned of.
    let read = |text: &str| Config::parse(text, Path::new(FILE)).unwrap().config;
    let config = read(text);
    let long = Duration::from_secs(50 * 365 * 86_400);
    let http = &config.http;
    for timeout in [
        config.mount_timeout,
        http.dial_timeout,
        http.response_header_timeout,
        http.request_timeout,
        config.blob.fetching_timeout,
        config.fuse.attr_timeout,
    ] {
        assert!(timeout > long, "{timeout:?}");
    }
    let short = Duration::from_millis(1);
    assert_eq!((http.min_wait, http.max_wait), (short, short));
    assert_eq!(config.background_fetch.fetch_period.if_set(), Some(short));
    assert_eq!(config.snapshotter.min_layer_size, 0);
    assert_eq!(config.blob.max_span_verification_retries, 0);
    assert_eq!(read(&config.to_toml()), config);
    // Our own keys have no such meaning.
    let own = "[holder]\nabandon_after_sec = -1\n";
    assert!(Config::parse(own, Path::new(FILE)).is_err());
}

/// What an operator sets keeps its meaning, also where v0.15 has it by default.
#[test]
fn pauses_of_filling_are_those_that_the_file_sets() {
    let pauses = |config: &Config| {
        let fetch = &config.background_fetch;
        [fetch.silence_period, fetch.fetch_period].map(soci_config::Pause::if_set)
    };
    assert_eq!(pauses(&Config::default()), [None, None]);
    let printed = Config::default().to_toml();
    let expected = [30_000, 500].map(|millis| Some(Duration::from_millis(millis)));
    assert_eq!(pauses(&parse(&printed)), expected);
    let set = parse("[background_fetch]\nsilence_period_msec = 5000\nfetch_period_msec = 0\n");
    assert_eq!(pauses(&set), [Some(Duration::from_secs(5)), None]);
}

#[test]
fn an_absurd_time_is_a_century_and_overflows_nothing() {
    let config = parse("mount_timeout_sec = 9223372036854775807");
    assert!(config.mount_timeout > Duration::from_secs(50 * 365 * 86_400));
    assert!(
        std::time::Instant::now()
            .checked_add(config.mount_timeout)
            .is_some()
    );
    assert_eq!(parse(&config.to_toml()), config);
}

#[test]
fn every_bad_value_is_named_with_line_key_value_and_what_is_allowed() {
    let cases = [
        ("\ndebug = 'yes'", 2, "debug", "'yes'", "true or false"),
        (
            "metrics_network = 'udp'",
            1,
            "metrics_network",
            "'udp'",
            "\"tcp\" or \"unix\"",
        ),
        (
            "metadata_store = 'sqlite'",
            1,
            "metadata_store",
            "'sqlite'",
            "\"db\" or \"db-multi\"",
        ),
        (
            "[background_fetch]\ndrop_policy = 'random'",
            2,
            "background_fetch.drop_policy",
            "'random'",
            "\"newest\" or \"oldest\"",
        ),
        (
            "[content_store]\ntype = 'docker'",
            2,
            "content_store.type",
            "'docker'",
            "\"soci\" or \"containerd\"",
        ),
        (
            "[content_store]\ntype = 'containerd'\ncontainerd_address = 'x'",
            3,
            "content_store.containerd_address",
            "\"x\"",
            "absolute path",
        ),
        (
            "[kubelet_credential_providers]\nconfig_path = '/c.yaml'",
            1,
            "kubelet_credential_providers.bin_dir",
            "\"\"",
            "absolute path",
        ),
        (
            "[kubelet_credential_providers]\nbin_dir = '/b'\nconfig_path = 'c.yaml'",
            3,
            "kubelet_credential_providers.config_path",
            "\"c.yaml\"",
            "absolute path",
        ),
        (
            "[cri_keychain]\nenable_keychain = true\nimage_service_path = 'c.sock'",
            3,
            "cri_keychain.image_service_path",
            "\"c.sock\"",
            "absolute path",
        ),
        (
            "mount_timeout_sec = 'x'",
            1,
            "mount_timeout_sec",
            "'x'",
            "seconds",
        ),
        (
            "mount_timeout_sec = 1.5",
            1,
            "mount_timeout_sec",
            "1.5",
            "seconds",
        ),
        (
            "mount_timeout_sec = 99999999999999999999",
            1,
            "mount_timeout_sec",
            "99999999999999999999",
            "seconds",
        ),
        (
            "[http]\n\nMaxRetries = '8'",
            3,
            "http.MaxRetries",
            "'8'",
            "a whole number",
        ),
        (
            "[http]\nMinWaitMsec = 400000",
            2,
            "http.MinWaitMsec",
            "400000",
            "300000",
        ),
        (
            "[blob]\nmin_wait_msec = 9\nmax_wait_msec = 3",
            2,
            "blob.min_wait_msec",
            "9",
            "3 ms",
        ),
        (
            "[blob]\nmax_span_verification_retries = 'x'",
            2,
            "blob.max_span_verification_retries",
            "'x'",
            "whole number",
        ),
        (
            "[layer_store]\nmax_size_bytes = -5",
            2,
            "layer_store.max_size_bytes",
            "-5",
            "from 0",
        ),
        (
            "[snapshotter]\nmin_layer_size = '1mb'",
            2,
            "snapshotter.min_layer_size",
            "'1mb'",
            "a whole number",
        ),
        (
            "[fetch]\nmemory_budget_bytes = 0",
            2,
            "fetch.memory_budget_bytes",
            "0",
            "from 1048576",
        ),
        (
            "metrics_address = 'localhost'",
            1,
            "metrics_address",
            "\"localhost\"",
            "HOST:PORT",
        ),
        (
            "metrics_address = ':123456'",
            1,
            "metrics_address",
            "\":123456\"",
            "HOST:PORT",
        ),
        (
            "metrics_network = 'unix'\nmetrics_address = 'm.sock'",
            2,
            "metrics_address",
            "\"m.sock\"",
            "absolute path",
        ),
        (
            "debug_address = 'debug.sock'",
            1,
            "debug_address",
            "\"debug.sock\"",
            "an absolute path, or HOST:PORT",
        ),
        ("http = 3", 1, "http", "3", "a table"),
        (
            "[resolver]\nhost = 'x'",
            2,
            "resolver.host",
            "'x'",
            "a table of tables",
        ),
        (
            "[resolver.host]\n'docker.io' = 1",
            2,
            "resolver.host.\"docker.io\"",
            "1",
            "a table",
        ),
        (
            "[resolver.host.'docker.io']\nmirrors = 'm'",
            2,
            "resolver.host.\"docker.io\".mirrors",
            "'m'",
            "an array of tables",
        ),
        (
            "[[resolver.host.'docker.io'.mirrors]]\n\nhost = 'ftp://m'",
            3,
            "resolver.host.\"docker.io\".mirrors[0].host",
            "\"ftp://m\"",
            "HOST[:PORT]",
        ),
        (
            "[limits]\neager_memory_bytes = 1",
            2,
            "limits.eager_memory_bytes",
            "1",
            "0, or at least 8388608",
        ),
        (
            "[[resolver.host.'docker.io'.mirrors]]\ninsecure = true",
            1,
            "resolver.host.\"docker.io\".mirrors[0].host",
            "\"\"",
            "HOST[:PORT]",
        ),
    ];
    for (text, line, key, value, allowed) in cases {
        let all = problems(text);
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        let p = &all[0];
        assert_eq!(
            (p.line, p.key.as_str(), p.value.as_str()),
            (line, key, value),
            "{text}"
        );
        assert!(p.allowed.contains(allowed), "{text}: {}", p.allowed);
        let message = Config::parse(text, Path::new(FILE))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with(&format!("{FILE}:{line}: {key} = ")),
            "{message}"
        );
    }
}

#[test]
fn bad_values_of_the_parallel_mode_are_named_when_it_is_on() {
    let table = "pull_modes.parallel_pull_unpack";
    let on = "discard_unpacked_layers = true\nenable = true\n";
    let per_image = "max_concurrent_unpacks_per_image";
    let cases = [
        (
            "max_concurrent_downloads = 2",
            "max_concurrent_downloads_per_image",
            "3",
            "which is 2",
        ),
        (
            "max_concurrent_unpacks = 4\nmax_concurrent_unpacks_per_image = 5",
            per_image,
            "5",
            "which is 4",
        ),
        (
            "decompress_streams.gzip.path = 'bin/sh'",
            "decompress_streams.\"gzip\".path",
            "\"bin/sh\"",
            "absolute path",
        ),
        (
            "decompress_streams.gzip.path = '/no/such'",
            "decompress_streams.\"gzip\".path",
            "\"/no/such\"",
            "existing",
        ),
        (
            "decompress_streams.zstd.path = '/etc/passwd'",
            "decompress_streams.\"zstd\".path",
            "\"/etc/passwd\"",
            "executable",
        ),
    ];
    for (text, key, value, allowed) in cases {
        let all = problems(&format!("[{table}]\n{on}{text}"));
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        assert_eq!(
            (all[0].key.as_str(), all[0].value.as_str()),
            (format!("{table}.{key}").as_str(), value)
        );
        assert!(
            all[0].allowed.contains(allowed),
            "{text}: {}",
            all[0].allowed
        );
        parse(&format!("[{table}]\n{text}"));
    }
    let unknown = warnings(&format!(
        "[{table}]\n{on}decompress_streams.lz4.path = '/bin/sh'"
    ));
    assert_eq!(unknown.len(), 1);
    assert!(
        unknown[0].contains("\"lz4\" is ignored: expected tables named gzip or zstd"),
        "{unknown:?}"
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused_in_a_mode_that_is_off_too() {
    let table = "pull_modes.parallel_pull_unpack";
    for (text, key, value, allowed) in [
        (
            "concurrent_download_chunk_size = '8 parsecs'",
            "concurrent_download_chunk_size",
            "'8 parsecs'",
            "\"8mb\"",
        ),
        (
            "concurrent_download_chunk_size = 8",
            "concurrent_download_chunk_size",
            "8",
            "\"8mb\"",
        ),
        (
            "decompress_streams.gzip.args = 'x'",
            "decompress_streams.\"gzip\".args",
            "'x'",
            "an array of strings",
        ),
    ] {
        let all = problems(&format!("[{table}]\n{text}"));
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        assert_eq!(
            (all[0].key.as_str(), all[0].value.as_str()),
            (format!("{table}.{key}").as_str(), value)
        );
        assert!(
            all[0].allowed.contains(allowed),
            "{text}: {}",
            all[0].allowed
        );
    }
}

/// v0.15 stores layers in the store that `type` names, and only containerd's can have them. Ours go to
/// the containerd at `containerd_address` in any case.
#[test]
fn the_parallel_mode_keeps_layers_with_either_type_of_content_store() {
    let table = "[pull_modes.parallel_pull_unpack]";
    for key in ["enable", "experimental_parallel_pull_as_fallback"] {
        for more in ["", "discard_unpacked_layers = true"] {
            for store in ["soci", "containerd"] {
                let config = parse(&format!(
                    "[content_store]\ntype = '{store}'\n{table}\n{key} = true\n{more}"
                ));
                assert_eq!(config.not_yet_supported(), Vec::<&str>::new());
                assert_eq!(config.without_effect(), Vec::<&str>::new());
            }
        }
    }
}

#[test]
fn v0_15s_special_values_are_understood() {
    let config = parse(
        "[content_store]\ncontainerd_address = ''\ntype = 'containerd'\n[prefetch]\nmax_concurrency = -1\n\
         [resolver]\nauth_client_ttl_sec = -1\n[cri_keychain]\nenable_keychain = true\nimage_service_path = ''\n\
         [pull_modes.parallel_pull_unpack]\nconcurrent_download_chunk_size = '0mb'\nmax_concurrent_unpacks = -7",
    );
    assert_eq!(
        config.content_store.containerd_address,
        "/run/containerd/containerd.sock"
    );
    assert_eq!(
        config.cri_keychain.image_service_path,
        "/run/containerd/containerd.sock"
    );
    assert_eq!(config.prefetch.max_concurrency, None);
    assert_eq!(config.resolver.auth_client_ttl_sec, None);
    assert_eq!(
        config
            .pull_modes
            .parallel_pull_unpack
            .concurrent_download_chunk_size,
        None
    );
    assert_eq!(
        config
            .pull_modes
            .parallel_pull_unpack
            .max_concurrent_unpacks,
        None
    );
}

#[test]
fn all_bad_values_are_reported_together_in_the_order_of_their_lines() {
    let all = problems(
        "[http]\nMinWaitMsec = 'y'\n[background_fetch]\ndisable = 1\n[blob]\nmin_wait_msec = 'x'",
    );
    assert_eq!(all.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 4, 6]);
}

#[test]
fn a_password_in_a_mirror_is_not_repeated() {
    let all = problems("[[resolver.host.x.mirrors]]\nhost = 'https://user:hunter2@m'");
    assert!(!all[0].to_string().contains("hunter2"), "{}", all[0]);
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let message = Config::parse("debug = true\n[http\n", Path::new(FILE))
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with(&format!("{FILE}:2: not valid TOML: ")),
        "{message}"
    );
    let twice = Config::parse("debug = true\ndebug = false\n", Path::new(FILE))
        .unwrap_err()
        .to_string();
    assert!(twice.starts_with(&format!("{FILE}:2: ")), "{twice}");
}

#[test]
fn unknown_keys_are_warned_of_with_a_suggestion_and_ignored() {
    assert_eq!(
        warnings(
            "mount_timeout_secs = 3\n[htpp]\nx = 1\n[background_fetch]\n\ndisabel = true\nmint_tea = 1"
        ),
        [
            format!(
                "{FILE}:1: unknown key mount_timeout_secs is ignored; did you mean mount_timeout_sec?"
            ),
            format!("{FILE}:2: unknown key htpp is ignored; did you mean http?"),
            format!(
                "{FILE}:6: unknown key background_fetch.disabel is ignored; did you mean background_fetch.disable?"
            ),
            format!("{FILE}:7: unknown key background_fetch.mint_tea is ignored"),
        ]
    );
}

#[test]
fn a_key_under_the_wrong_table_is_shown_its_right_place() {
    assert_eq!(
        warnings("[http]\nmount_timeout_sec = 3\n"),
        [format!(
            "{FILE}:2: unknown key http.mount_timeout_sec is ignored; did you mean mount_timeout_sec?"
        )]
    );
}

#[test]
fn a_key_given_twice_in_different_case_counts_as_last_given() {
    let loaded = Config::parse("debug = true\nDEBUG = false\n", Path::new(FILE)).unwrap();
    assert!(!loaded.config.debug);
    assert_eq!(
        loaded.warnings,
        [format!(
            "{FILE}:2: debug and DEBUG are the same key: the later one counts"
        )]
    );
}

#[test]
fn a_missing_file_is_fine_only_at_the_default_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("config.toml");
    let message = Config::load(&missing).unwrap_err().to_string();
    assert!(
        message.contains(&missing.display().to_string())
            && message.contains("failed to open config file"),
        "{message}"
    );

    std::fs::write(&missing, "debug = true").unwrap();
    assert!(Config::load(&missing).unwrap().config.debug);
    std::fs::write(&missing, b"debug = \xff").unwrap();
    assert!(
        Config::load(&missing)
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

#[test]
fn keys_without_their_feature_are_listed_only_when_they_were_changed() {
    assert_eq!(Config::default().not_yet_supported(), Vec::<&str>::new());
    assert_eq!(Config::default().without_effect(), Vec::<&str>::new());
    let config = parse(
        "http_cache_type = 'memory'\n[blob]\nfetching_timeout_sec = 5\n[directory_cache]\nsync_add = true\n",
    );
    assert_eq!(config.not_yet_supported(), ["blob.fetching_timeout_sec"]);
    assert_eq!(
        config.without_effect(),
        ["http_cache_type", "directory_cache."]
    );
}
