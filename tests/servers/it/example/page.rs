//! The page of `examples/orders`: the states that are sent to it, and what a browser shows of them.

use std::{env, fs, path::PathBuf, process::Stdio};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{SinkExt, StreamExt, future::join_all};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::{Duration, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Client, PATIENCE, UNFINISHED,
    orders::{Folder, Shop},
    socket::{self, Socket, next_message},
};

// --- the states ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_page_gets_the_pending_orders_the_countdown_of_the_drain_and_its_result() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "1500"), ("DRAIN_LIMIT_MS", "20000")]).await;
    let mut client = Client::connect(shop.addr).await;
    let page = client.send(Method::GET, "/", "").await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&page).contains(&format!("kill -TERM {}", shop.pid())));

    let mut states = states(&shop).await;
    let state = next_state(&mut states).await.expect("a first state");
    assert_eq!((&state["orders"]["pending"], &state["drain_left_ms"]), (&json!(0), &Value::Null));
    assert_eq!(state["is_draining"], false);
    assert_eq!(state["open_requests"], 0, "the page itself is not tracked");

    client.order("book").await.unwrap();
    drop(client);
    shop.kill(Signal::TERM);
    let (mut last, mut left, mut were_pending) = (Value::Null, 20_000, false);
    while let Some(state) = next_state(&mut states).await {
        if let Some(now_left) = state["drain_left_ms"].as_u64() {
            assert!(now_left <= left, "{last}, then {state}");
            left = now_left;
            were_pending |= state["orders"]["pending"] == 1;
        }
        last = state;
    }
    assert!(were_pending);
    assert_eq!((&last["orders"]["pending"], &last["orders"]["ended"]["completed"]), (&json!(0), &json!(1)), "{last}");
    let result = json!({ "every_order_is_written": true, "text": "drained: every order is written" });
    assert_eq!((&last["is_draining"], &last["end"]), (&json!(true), &result));
    let end = shop.end().await;
    assert_eq!(end.code, Some(0), "{end:?}");
}

#[tokio::test]
async fn an_open_page_does_not_delay_the_exit_of_an_idle_service() {
    // The readiness delay is a tenth of the limit; with the share of the servers it would be more than half.
    let shop = Shop::open(&[("DRAIN_LIMIT_MS", "20000")]).await;
    let mut pages = join_all((0..3).map(|_| states(&shop))).await;
    for page in &mut pages {
        next_state(page).await.expect("a first state");
    }

    shop.kill(Signal::TERM);
    let end = shop.end().await;

    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.took < Duration::from_secs(6), "{end:?}");
    assert!(!end.stderr.contains(UNFINISHED), "{end:?}");
    for page in &mut pages {
        assert_eq!(last_state(page).await["end"]["every_order_is_written"], true);
    }
}

#[tokio::test]
async fn the_last_state_counts_the_orders_that_were_not_written_and_names_their_file() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "10000"), ("DRAIN_LIMIT_MS", "200")]).await;
    let mut states = states(&shop).await;
    let mut client = Client::connect(shop.addr).await;
    for item in ["book", "pen"] {
        client.order(item).await.unwrap();
    }

    shop.kill(Signal::TERM);
    let file = shop.folder.path().join("orders.db.undelivered.jsonl");
    let text = format!("not written: 2 of 2 orders, which are in {}", file.display());
    assert_eq!(last_state(&mut states).await["end"], json!({ "every_order_is_written": false, "text": text }));
    let end = shop.end().await;
    assert_eq!(end.code, Some(1), "{end:?}");
    assert_eq!(end.spilled().len(), 2);
}

#[tokio::test]
async fn the_last_state_has_the_report_if_orders_were_lost() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "10000"), ("DRAIN_LIMIT_MS", "200")]).await;
    fs::create_dir(shop.folder.path().join("orders.db.undelivered.jsonl")).unwrap();
    let mut states = states(&shop).await;
    Client::connect(shop.addr).await.order("book").await.unwrap();

    shop.kill(Signal::TERM);
    let last = last_state(&mut states).await;
    let end = shop.end().await;

    assert_eq!(last["end"]["every_order_is_written"], false);
    let text = last["end"]["text"].as_str().unwrap();
    assert!(text.contains("order.created: 1 panicked"), "{last}");
    assert!(end.stderr.contains(text), "{end:?}");
}

async fn states(shop: &Shop) -> Socket {
    socket::connect(&format!("ws://{}/live", shop.addr)).await
}

/// `None` when the process has ended.
async fn next_state(states: &mut Socket) -> Option<Value> {
    let message = timeout(PATIENCE, states.next()).await.expect("the page is kept up to date")?.ok()?;
    Some(serde_json::from_str(message.to_text().expect("a text")).expect("JSON"))
}

async fn last_state(states: &mut Socket) -> Value {
    let mut last = Value::Null;
    while let Some(state) = next_state(states).await {
        last = state;
    }
    last
}

// --- in a browser ----------------------------------------------------------------------------------------------------

#[tokio::test]
#[ignore = "needs chromium: scripts/page"]
async fn under_load_the_page_shows_its_rate() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "20")]).await;
    let browser = Browser::start().await;
    let mut tab = browser.open(&shop).await;
    assert_eq!(tab.text("#state").await, "serving");
    let load = join_all((0..4).map(async |_| {
        let mut client = Client::connect(shop.addr).await;
        loop {
            assert_eq!(client.order("book").await.unwrap().0, StatusCode::CREATED);
        }
    }));
    let shown = async {
        tab.until("number('#rate b') > 50 && number('#pending b') > 0 && number('#written') > 0").await;
        tab.until("past.length > 50 && document.querySelector('#rate polyline').points.length === past.length").await;
        tab.looks_right("load").await;
    };
    tokio::select! {
        _ = load => unreachable!(),
        () = shown => {}
    }
    tab.until("number('#pending b') === 0 && text('#written') === text('#accepted')").await;
    tab.until("number('#rate b') === 0").await;
    assert_eq!(tab.text("#not_written").await, "0");
}

#[tokio::test]
#[ignore = "needs chromium: scripts/page"]
async fn the_buttons_order_once_at_a_time() {
    let shop = Shop::open(&[("ACK", "1"), ("EVENT_DELAY_MS", "100")]).await;
    let browser = Browser::start().await;
    let mut tab = browser.open(&shop).await;
    for (count, answer) in [(1, "answers: 1 × 201"), (100, "answers: 100 × 201")] {
        tab.until("!document.querySelector('button:disabled')").await;
        let disabled = format!("button('{count}').click(), document.querySelectorAll('button:disabled').length");
        assert_eq!(tab.eval(&disabled).await, 2);
        tab.until(&format!("text('#answers') === '{answer}' && !document.querySelector('button:disabled')")).await;
    }
    assert_eq!(tab.text("#accepted").await, "101");

    shop.kill(Signal::KILL);
    tab.until("text('#state').startsWith('no connection')").await;
    assert_eq!(tab.eval("document.querySelectorAll('button:disabled').length").await, 2);
    tab.looks_right("killed").await;
}

#[tokio::test]
#[ignore = "needs chromium: scripts/page"]
async fn a_drain_is_shown_and_that_every_order_is_written() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "4000"), ("DRAIN_LIMIT_MS", "25000")]).await;
    let browser = Browser::start().await;
    let mut tab = browser.open(&shop).await;
    assert_eq!(tab.eval("document.querySelector('#drain').checkVisibility()").await, false);
    tab.order_a_hundred().await;

    shop.kill(Signal::TERM);
    tab.until("text('#state').startsWith('draining') && number('#pending b') > 0").await;
    assert_eq!(tab.eval("document.querySelector('#drain').checkVisibility()").await, true);
    assert_eq!(tab.eval("document.querySelectorAll('button:disabled').length").await, 2);
    tab.until("$('left').value < $('left').max && $('left').max > 20000").await;
    tab.looks_right("draining").await;

    tab.until("text('#state').startsWith('drained: every order is written')").await;
    assert_eq!(tab.eval("text('#written')").await, "100");
    assert_eq!(tab.eval("document.querySelector('#drain').checkVisibility()").await, false);
    let end = shop.end().await;
    assert_eq!((end.code, end.rows().len()), (Some(0), 100), "{end:?}");
    tab.until("live.readyState === WebSocket.CLOSED").await;
    assert_eq!(tab.eval("document.querySelectorAll('button:disabled').length").await, 2);
    tab.looks_right("drained").await;
}

#[tokio::test]
#[ignore = "needs chromium: scripts/page"]
async fn orders_that_were_not_written_are_shown_in_red_with_their_file() {
    let shop = Shop::open(&[("EVENT_DELAY_MS", "60000"), ("DRAIN_LIMIT_MS", "1000")]).await;
    let browser = Browser::start().await;
    let mut tab = browser.open(&shop).await;
    tab.order_a_hundred().await;

    shop.kill(Signal::TERM);
    let file = shop.folder.path().join("orders.db.undelivered.jsonl");
    let text = format!("not written: 100 of 100 orders, which are in {}", file.display());
    tab.until(&format!("text('#state').startsWith({})", json!(text))).await;
    let end = shop.end().await;
    assert_eq!((end.code, end.spilled().len()), (Some(1), 100), "{end:?}");
    tab.until("live.readyState === WebSocket.CLOSED").await;
    assert_eq!(tab.eval("document.querySelector('#state').className").await, "failed");
    assert_eq!(tab.eval("text('#not_written') + document.querySelector('#not_written').className").await, "100wrong");
    tab.looks_right("failed").await;
}

#[tokio::test]
#[ignore = "needs chromium: scripts/page"]
async fn the_error_of_a_store_and_the_report_after_a_loss_are_shown() {
    let shop = Shop::open(&[("DRAIN_LIMIT_MS", "1000")]).await;
    shop.database().execute_batch("DROP TABLE orders").unwrap();
    // No file can be made there.
    fs::create_dir(shop.folder.path().join("orders.db.undelivered.jsonl")).unwrap();
    let browser = Browser::start().await;
    let mut tab = browser.open(&shop).await;
    tab.eval("button('1').click()").await;
    tab.until("number('#failed_attempts') > 0 && text('#error').startsWith('no such table: orders')").await;
    tab.looks_right("failing").await;

    shop.kill(Signal::TERM);
    tab.until("text('#state').includes('order.created: 1 panicked')").await;
    assert_eq!(tab.eval("document.querySelector('#state').className").await, "failed");
    assert_eq!(shop.end().await.code, Some(1));
    tab.looks_right("lost").await;
}

impl Tab {
    async fn order_a_hundred(&mut self) {
        self.eval("button('100').click()").await;
        self.until("text('#answers') === 'answers: 100 × 201' && number('#accepted') === 100").await;
    }

    /// Checks the page at each width and in both schemes, and stores screenshots if a folder for them is set.
    async fn looks_right(&mut self, name: &str) {
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
            let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
            self.call("Emulation.setDeviceMetricsOverride", metrics).await;
            let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            self.call("Emulation.setEmulatedMedia", features).await;
            let round = format!("{name}-{width}-{scheme}");
            assert_eq!(self.eval("innerWidth").await, width, "{round}");
            assert_eq!(self.eval("document.documentElement.scrollWidth <= innerWidth").await, true, "{round}");
            assert_eq!(self.eval(TOO_FAINT).await, json!([]), "{round}");

            let Some(folder) = env::var_os("SCREENSHOTS") else { continue };
            let height = self.eval("document.documentElement.scrollHeight").await;
            let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
            let shot =
                self.call("Page.captureScreenshot", json!({ "clip": clip, "captureBeyondViewport": true })).await;
            let png = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
            fs::write(PathBuf::from(folder).join(round).with_extension("png"), png).unwrap();
        }
        assert_eq!(self.errors, Vec::<Value>::new(), "{name}: the console has errors");
    }

    async fn text(&mut self, selector: &str) -> Value {
        self.eval(&format!("text('{selector}')")).await
    }
}

/// For expressions of these tests.
const HELPERS: &str = "
    var text = selector => document.querySelector(selector).textContent
    var number = selector => Number(text(selector).replace(',', ''))
    var button = count => document.querySelector(`button[data-count='${count}']`)";

/// The texts whose contrast is below 4.5, the least for normal text in WCAG 2, level AA. Disabled buttons are exempt
/// from that.
const TOO_FAINT: &str = r"(() => {
    const rgba = color => color.match(/[\d.]+/g).map(Number)
    const luminance = color => rgba(color).slice(0, 3).map(part => part / 255)
        .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0)
    const background = element => {
        const color = getComputedStyle(element).backgroundColor
        return rgba(color)[3] === 0 ? background(element.parentElement) : color
    }
    const contrast = element => {
        const [one, other] = [getComputedStyle(element).color, background(element)].map(luminance)
        return (Math.max(one, other) + .05) / (Math.min(one, other) + .05)
    }
    const has_text = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    return [...document.querySelectorAll('body *')]
        .filter(element => element.checkVisibility() && has_text(element) && !element.matches(':disabled'))
        .filter(element => contrast(element) < 4.5)
        .map(element => `${contrast(element).toFixed(1)}: ${element.textContent}`)
})()";

// --- the browser -----------------------------------------------------------------------------------------------------

/// A headless Chromium, with a profile of its own. Its processes are killed on drop.
struct Browser {
    child: Child,
    /// Such as `ws://127.0.0.1:41234/devtools/browser/5ae4c0f2-..`.
    devtools: String,
    _profile: Folder,
}

impl Browser {
    async fn start() -> Self {
        let profile = Folder::new();
        let mut child = Command::new(env::var_os("CHROMIUM").expect("CHROMIUM is the program: see scripts/page"))
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut browser = Self { child, devtools: String::new(), _profile: profile };
        while browser.devtools.is_empty() {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("it starts").unwrap().expect("it runs");
            if let Some(url) = line.strip_prefix("DevTools listening on ") {
                browser.devtools = url.to_owned();
            }
        }
        // It would wait for a full pipe.
        tokio::spawn(async move { lines.into_inner().read_to_end(&mut Vec::new()).await });
        browser
    }

    /// Opens the page of a shop, and waits until it shows a state.
    async fn open(&self, shop: &Shop) -> Tab {
        let mut tab = Tab::connect(&self.devtools).await;
        let target = tab.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let (address, _) = self.devtools.split_once("/browser/").unwrap();
        let mut tab = Tab::connect(&format!("{address}/page/{}", target["targetId"].as_str().unwrap())).await;
        for domain in ["Log", "Page", "Runtime"] {
            tab.call(&format!("{domain}.enable"), json!({})).await;
        }
        tab.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": HELPERS })).await;
        tab.call("Page.navigate", json!({ "url": format!("http://{}/", shop.addr) })).await;
        tab.until("text('#state') === 'serving'").await;
        tab
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let _ = kill_process_group(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL);
        }
    }
}

/// A connection to a tab, with the DevTools protocol.
struct Tab {
    socket: Socket,
    calls: u64,
    /// Exceptions, failed requests, and what the console got as an error.
    errors: Vec<Value>,
}

impl Tab {
    async fn connect(url: &str) -> Self {
        Self { socket: socket::connect(url).await, calls: 0, errors: Vec::new() }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({ "id": self.calls, "method": method, "params": params });
        self.socket.send(Message::text(call.to_string())).await.unwrap();
        loop {
            let message = next_message(&mut self.socket).await.expect("the browser runs");
            let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            let params = &message["params"];
            let is_error = match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Runtime.consoleAPICalled") => params["type"] == "error",
                Some("Log.entryAdded") => params["entry"]["level"] == "error",
                _ => false,
            };
            if is_error {
                self.errors.push(message);
            }
        }
    }

    /// The value of an expression, and that of a promise when it is fulfilled.
    async fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let evaluated = self.call("Runtime.evaluate", params).await;
        assert!(evaluated["exceptionDetails"].is_null(), "{expression}: {evaluated}");
        evaluated["result"]["value"].clone()
    }

    /// Waits until a condition holds in the page.
    async fn until(&mut self, condition: &str) {
        let limit = PATIENCE.as_millis();
        let holds = format!(
            "new Promise(resolve => {{
                const began = Date.now()
                const look = () => {{
                    if (document.readyState === 'complete' && ({condition})) resolve(true)
                    else if (Date.now() - began > {limit}) resolve(document.body.innerText)
                    else setTimeout(look, 20)
                }}
                look()
            }})"
        );
        assert_eq!(self.eval(&holds).await, true, "{condition}");
    }
}
