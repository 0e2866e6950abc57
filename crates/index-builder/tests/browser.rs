//! The status page in a real browser: Chromium shows what is in the queue, and nothing of it runs. A program of
//! its own, because only `make check-status-page` has the browser.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use soci_index_builder::service::{Listener, Metrics, Pages, Service};
use soci_index_builder::{
    Claim, Failure, Finish, ImageIndexer, Outcome, PoolSettings, Push, PushPolicy, Queue, WorkerId,
    WorkerPool,
};
use tokio_util::sync::CancellationToken;

/// What runs if the page does not escape it: each mark would be seen in the title.
const HOSTILE: &str = "\"'><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\
     </td></tr></table><h2 id=owned>owned</h2>&lt;b&gt;&amp;#39; \u{202e}txt ${7*7}";

/// Chromium with its debugging protocol on two named pipes: messages in JSON, each with a zero behind it.
struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    next: u64,
    session: Option<String>,
}

impl Browser {
    fn start(folder: &Path) -> Self {
        let (to, from) = (folder.join("to"), folder.join("from"));
        for pipe in [&to, &from] {
            let mode = rustix::fs::Mode::from(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }
        // The browser expects the pipes as descriptors 3 and 4.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
            --no-first-run --remote-debugging-pipe --user-data-dir=\"$1/profile\" about:blank \
            3<\"$1/to\" 4>\"$1/from\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(folder)
            .env("HOME", folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = OpenOptions::new().write(true).open(to).unwrap();
        let from = File::open(from).unwrap();
        let mut browser = Self {
            child,
            to,
            from: BufReader::new(from),
            next: 1,
            session: None,
        };
        let page = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call(
            "Target.attachToTarget",
            json!({"targetId": page["targetId"], "flatten": true}),
        );
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        browser
    }

    /// Calls a method of the protocol and returns its result.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let id = self.next;
        self.next += 1;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let mut message = Vec::new();
            self.from.read_until(0, &mut message).unwrap();
            assert_eq!(message.pop(), Some(0), "the browser ended");
            let message: Value = serde_json::from_slice(&message).unwrap();
            if message["id"] == id {
                assert_eq!(message["error"], Value::Null, "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true});
        let result = self.call("Runtime.evaluate", parameters);
        // While the page is being replaced there is none.
        result["result"]["value"].clone()
    }

    fn text(&mut self, selector: &str) -> String {
        let found = self.value(&format!("document.querySelector({selector:?})?.innerText"));
        found.as_str().unwrap_or_default().replace('\n', " ")
    }

    fn until(&mut self, expression: &str) {
        while self.value(expression) != json!(true) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Never;

#[async_trait::async_trait]
impl ImageIndexer for Never {
    async fn index(&self, _: &Push) -> Result<Outcome, Failure> {
        std::future::pending().await
    }
}

/// Serves the queue; its workers are the test.
async fn serve(queue: &Queue) -> String {
    let settings = PoolSettings::default();
    let pool = WorkerPool::new(queue.clone(), Arc::new(Never), settings);
    let service = Arc::new(Service {
        queue: queue.clone(),
        policy: PushPolicy {
            filters: "*:*".parse().unwrap(),
            registries: BTreeSet::new(),
            aliases: BTreeMap::new(),
            suffix: "-soci".to_owned(),
        },
        pool: Arc::new(pool.await.unwrap()),
        secret: None,
        metrics: Arc::new(Metrics::new().unwrap()),
    });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), None, Pages::Status);
    let listener = listener.await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(listener.serve(service, CancellationToken::new()));
    format!("http://{address}/")
}

fn end(queue: &Queue, worker: &WorkerId, finish: &Finish) -> u64 {
    match queue.claim(worker, 3).unwrap() {
        Claim::Job(job) => {
            queue.finish(worker, job.id, finish).unwrap();
            job.id
        }
        Claim::Nothing(_) => panic!("no job waits"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_queue_results_time_and_bytes_and_runs_nothing_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(&folder.path().join("queue")).unwrap();
    let url = serve(&queue).await;
    // Calls to the browser block.
    tokio::task::spawn_blocking(move || look(&queue, &url, folder.path()))
        .await
        .unwrap();
}

fn look(queue: &Queue, url: &str, folder: &Path) {
    let mut browser = Browser::start(folder);
    browser.call("Page.navigate", json!({"url": url}));
    browser.until("document.querySelector('p')?.innerText == 'No image was pushed yet.'");
    assert_eq!(browser.text("h1"), "SOCI index builder");
    assert_eq!(browser.text("#waiting"), "0 waiting");

    let push = |tag: &str| Push::new("registry.example", "team/app", Some(tag), None).unwrap();
    // No event can have such names; the page does not rely on it.
    let hostile = Push {
        repository: HOSTILE.to_owned(),
        ..push("hostile")
    };
    let pushes = [push("fine"), hostile, push("damaged"), push("next")];
    queue.add(&pushes).unwrap();
    let worker = queue.enter().unwrap();
    let done = Finish::Done(Outcome {
        image: Some("registry.example/team/app:fine-soci".to_owned()),
        bytes: 3 << 20,
        layers: 2,
        ..Outcome::default()
    });
    end(queue, &worker, &done);
    end(queue, &worker, &Finish::Skipped(HOSTILE.to_owned()));
    end(queue, &worker, &Finish::Dead(HOSTILE.to_owned()));
    // The page loads itself again.
    browser.until("document.querySelectorAll('tbody tr').length == 4");
    for (state, shown) in [
        ("waiting", "1 waiting"),
        ("running", "0 running"),
        ("done", "1 done"),
        ("skipped", "1 skipped"),
        ("dead", "1 dead"),
    ] {
        assert_eq!(browser.text(&format!("#{state}")), shown);
    }
    let rows = browser.value(
        "[...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))",
    );
    let rows: Vec<Vec<String>> = serde_json::from_value(rows).unwrap();
    let states: Vec<&str> = rows.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(
        states,
        ["waiting", "dead", "skipped", "done"],
        "the newest first"
    );
    let fine = &rows[3];
    assert_eq!(
        (fine[0].as_str(), fine[2].as_str()),
        ("1", "registry.example/team/app:fine")
    );
    assert!(
        fine[3].ends_with(" s") && fine[4].ends_with(" s"),
        "{fine:?}"
    );
    assert_eq!((fine[5].as_str(), fine[6].as_str()), ("3.0 MiB", "1"));
    assert_eq!(fine[7], "registry.example/team/app:fine-soci");
    assert_eq!(rows[2][2], format!("registry.example/{HOSTILE}:hostile"));
    assert_eq!(rows[2][7], HOSTILE);
    assert_eq!(rows[1][7], HOSTILE);
    assert_eq!(browser.value("document.title"), json!("SOCI index builder"));
    let foreign = "document.querySelectorAll('script, img, h2, iframe, a, form').length";
    assert_eq!(browser.value(foreign), json!(0));
    // Nor does it run when it gets into the page in another way.
    browser.value(
        "document.body.insertAdjacentHTML('beforeend', `<img src=x onerror=\"document.title='owned'\">`)",
    );
    browser.until("document.querySelector('img').complete");
    assert_eq!(browser.value("document.title"), json!("SOCI index builder"));

    // It fits a narrow window: long names break.
    let narrow = json!({"width": 480, "height": 800, "deviceScaleFactor": 1, "mobile": false});
    browser.call("Emulation.setDeviceMetricsOverride", narrow);
    browser.until("innerWidth == 480 && document.querySelectorAll('tbody tr').length == 4");
    let overflow = browser.value("document.documentElement.scrollWidth - innerWidth");
    assert!(
        overflow.as_i64().unwrap() <= 0,
        "{overflow} pixels too wide"
    );
}
