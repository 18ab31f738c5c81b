use std::path::PathBuf;

use dmce_abi::AddrLayout;
use dmce_abi::name::Instance;

use super::*;

/// `docs/configuration.md` from the root of the project.
const PAGE: &str = include_str!("../../../docs/configuration.md");

fn read(text: &str) -> Result<Config, String> {
    read_with(text, &[])
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Config::of_text(Path::new("dmce.toml"), text, variables).map_err(|error| error.to_string())
}

/// The example of the page: every key, those without a default as comments.
fn example() -> &'static str {
    let (_, rest) = PAGE.split_once("```toml\n").unwrap();
    rest.split_once("```").unwrap().0
}

/// The example with the keys that are comments made real.
fn full_example() -> String {
    let real = |line: &'static str| match line.strip_prefix("# ") {
        Some(key) if key.starts_with('[') || key.contains(" = ") => key,
        _ => line,
    };
    example().lines().flat_map(|line| [real(line), "\n"]).collect()
}

/// Section and key of each line of the full example.
pub(crate) fn documented_keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in full_example().lines() {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_start_matches('[');
            name.split_once(']').unwrap().0.clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push((section.clone(), key.to_owned()));
        }
    }
    keys
}

#[test]
fn the_documented_example_is_the_defaults() {
    assert_eq!(read(example()), Ok(Config::default()));
    assert_eq!(read(""), Ok(Config::default()));
}

#[test]
fn the_documented_example_has_every_key() {
    let config = read(&full_example()).unwrap();
    assert_eq!(config.instance.name, Some(Instance::new("main").unwrap()));
    assert_eq!(config.instance.dir, Some(PathBuf::from("/run/dmce")));
    assert_eq!(config.broker.socket_group.as_deref(), Some("dmce"));
    let all = Quota {
        connections: Some(128),
        requests_per_s: Some(20_000),
        requests_burst: Some(40_000),
        bytes: Some(Bytes::gib(4)),
        sessions: Some(64),
        blocks: Some(1024),
        regions: Some(256),
    };
    assert_eq!(config.quota.of(7), all);
    let own = Quota { bytes: Some(Bytes::gib(64)), sessions: Some(512), ..config.quota.of(1000) };
    assert_eq!(config.quota.of(1000), own);
    // `deny_unknown_fields` tells the keys of each section: none may be missing from the page.
    let policy = PolicySection {
        up_to: Some(Bytes(65536)),
        copies: Some(1),
        page_size: Some(Bytes(4096)),
        block_bytes: Some(Bytes::mib(64)),
        align: Some(Bytes(64)),
        placement: Some(Placement::LeastUsed),
        wait_ms: Some(2000),
    };
    assert_eq!(config.policy, [policy]);
    let weights: Vec<_> = config.weight.iter().map(|(id, weight)| (id.get(), *weight)).collect();
    assert_eq!(weights, [(1, 3), (2, 1)]);
    for section in ["instance", "broker", "limits", "quota", "quota.uid.1000", "daemon", "[policy]"]
    {
        let error = read(&format!("[{section}]\nno_such_key = 1")).unwrap_err();
        let section = section.trim_matches(['[', ']']);
        for key in error.split('`').skip(3).step_by(2).filter(|key| *key != "uid") {
            let documented = documented_keys().contains(&(section.to_owned(), key.to_owned()));
            assert!(documented, "{section}.{key}");
        }
    }
}

/// Text, and the line that it is answered with.
const WRONG: &[(&str, &str)] = &[
    ("[limits]\nsessions = \n", "dmce.toml:2:12: "),
    ("[limits\n", "dmce.toml:1:8: "),
    ("[limits]\nsessions = 1\nsessions = 2\n", "dmce.toml:3:1: duplicate key"),
    ("[limit]\n", "dmce.toml:1:2: unknown field `limit`, expected one of `instance`, `broker`,"),
    ("[limits]\n  sesions = 5\n", "dmce.toml:2:3: unknown field `sesions`, expected one of"),
    ("limits = 5\n", "dmce.toml:1:10: invalid type: integer `5`, expected a table"),
    ("[limits]\nsessions = \"5\"\n", "dmce.toml:2:12: invalid type: string \"5\", expected u32"),
    ("[limits]\nsessions = -1\n", "dmce.toml:2:12: "),
    ("[limits]\nsessions = 4294967296\n", "dmce.toml:2:12: "),
    ("[limits]\nsessions = 0\n", "dmce.toml:2:12: sessions: 0 is not between 1 and 1048575"),
    (
        "[limits]\nblocks = 1048576\n",
        "dmce.toml:2:10: blocks: 1048576 is not between 1 and 1048575",
    ),
    ("[limits]\ndaemons = 257\n", "dmce.toml:2:11: daemons: 257 is not between 1 and 256"),
    ("[limits]\nregions = 0\n", "dmce.toml:2:11: regions: 0 is not between 1 and 1048575"),
    (
        "[limits]\nrequests_outstanding = 0\n",
        "dmce.toml:2:24: requests_outstanding: 0 is not between 1 and 4096",
    ),
    (
        "[limits]\nblocks = 5000\n[instance]\nlayout = \"os64\"\n",
        "dmce.toml:2:10: blocks: 5000 is beyond the 4095 block ids of layout os64",
    ),
    (
        "[instance]\nname = \"Main\"\n",
        "dmce.toml:2:8: \"Main\": an instance's name is 1 to 32 of a-z, 0-9, _ and -",
    ),
    (
        "[instance]\nlayout = \"16/16/31\"\n",
        "dmce.toml:2:10: \"16/16/31\": widths 16/16/31 make no 64-bit layout",
    ),
    ("[instance]\ncopies = 4\n", "dmce.toml:2:10: copies: 4 is not between 1 and 3"),
    ("[instance]\nobjects = \"shm\"\n", "dmce.toml:2:11: objects: shm does not begin with /"),
    ("[instance]\ndir = \"run\"\n", "dmce.toml:2:7: dir: run does not begin with /"),
    (
        "[broker]\nsocket_mode = \"0680\"\n",
        "dmce.toml:2:15: \"0680\" is no octal mode such as \"0600\" or \"0660\"",
    ),
    ("[broker]\nsocket_mode = \"1777\"\n", "dmce.toml:2:15: socket_mode: 1777 is beyond 0777"),
    (
        "[broker]\nplacement = \"random\"\n",
        "dmce.toml:2:13: unknown variant `random`, expected one of `round-robin`, `least-used`,",
    ),
    ("[weight]\n0 = 1\n", "dmce.toml:2:1: \"0\" is no daemon's id"),
    ("[weight]\n1 = 2000000\n", "dmce.toml:2:5: daemon: 1 has 2000000, limit 1000000"),
    ("[weight]\n1 = 5\n\n 2 = 2000000\n", "dmce.toml:4:6: daemon: 2 has 2000000, limit 1000000"),
    ("[[policy]]\nup_to = 0\n", "dmce.toml:2:9: up_to: entry 1: there are no allocations of 0"),
    (
        "[[policy]]\npage_size = 5000\n",
        "dmce.toml:2:13: page_size: entry 1: 5000 is no power of two from 4096 to 2097152",
    ),
    (
        "[[policy]]\nup_to = 64\n\n[[policy]]\nup_to = 128\nalign = 48\n",
        "dmce.toml:6:9: align: entry 2: 48 is no power of two up to",
    ),
    (
        "[[policy]]\n[limits]\nsessions = 5\n[[policy]]\n[[policy]]\ncopies = 4\n",
        "dmce.toml:6:10: copies: entry 3: 4 is not between 1 and 3",
    ),
    (
        "[[policy]]\n[[policy]]\nblock_bytes = \"2GiB\"\n",
        "dmce.toml:3:15: block_bytes: entry 2: 2147483648 is no multiple of 4096 up to 1073741824",
    ),
    (
        "[[policy]]\nup_to = 64\n[[policy]]\n[[policy]]\nup_to = 64\n",
        "dmce.toml:5:9: up_to: entry 3: 64 is that of 1",
    ),
    (
        "policy = [\n  { up_to = 64 },\n  { up_to = 0 },\n]\n",
        "dmce.toml:3:13: up_to: entry 2: there are no allocations of 0",
    ),
    ("[[policy]]\n[[policy]]\nup_to = 5\nalgin = 64\n", "dmce.toml:4:1: unknown field `algin`"),
    (
        "[[policy]]\n[[policy]]\nup_to = 5\nalign = false\n",
        "dmce.toml:4:9: invalid type: boolean `false`, expected a size such as",
    ),
    (
        "[[policy]]\nplacement = \"weighted\"\n[[policy]]\nplacement = \"random\"\n",
        "dmce.toml:4:13: unknown variant `random`",
    ),
    ("[[policy]]\n[[policy]]\nwait_ms = -1\n", "dmce.toml:3:11: invalid value: integer `-1`"),
    (
        "[broker]\npressure_percent = 70\n",
        "dmce.toml:2:20: relief_percent: 80 is more than pressure_percent, which is 70",
    ),
    (
        "[broker]\nrebalance_percent = 5\nusage_samples = 2\n",
        "dmce.toml:2:21: rebalance_percent: blocks move where usage_samples is at least 3, and it",
    ),
    (
        "[broker]\nsync_blocks = 0\nrebalance_percent = 5\n",
        "dmce.toml:3:21: rebalance_percent: blocks move where sync_blocks is at least 1, and it",
    ),
    (
        "[broker]\nsense_ms = 9000\n",
        "dmce.toml:2:12: suspect_ms: 5000 is less than sense_ms, which is 9000",
    ),
    (
        "[daemon]\ncapacity = \"3GB\"\n",
        "dmce.toml:2:12: \"3GB\" is no size below 16384PiB: write bytes or a binary unit,",
    ),
    (
        "[daemon]\ncapacity = true\n",
        "dmce.toml:2:12: invalid type: boolean `true`, expected a size such as \"64MiB\"",
    ),
    ("[daemon]\ncapacity = 5000\n", "dmce.toml:2:12: capacity: 5000 is no multiple of 4KiB"),
    (
        "[daemon]\npool_object_bytes = \"2GiB\"\n",
        "dmce.toml:2:21: pool_object_bytes: 2GiB is not between 4KiB and 1GiB",
    ),
    (
        "[quota]\nrequests_burst = 10\n",
        "dmce.toml:2:18: requests_burst: without requests_per_s it has no effect",
    ),
    (
        "[quota]\nrequests_per_s = 5\n[quota.uid.7]\nrequests_per_s = 5\n\
         [quota.uid.1000]\nrequests_burst = 10\n",
        "dmce.toml:6:18: requests_burst: user 1000: without requests_per_s it has no effect",
    ),
    ("[quota.uid.alice]\nsessions = 1\n", "dmce.toml:1:12: \"alice\" is no number of a user"),
    ("[quota.uid.1000]\nbytes = \"1 G\"\n", "dmce.toml:2:9: \"1 G\" is no size below"),
];

#[test]
fn a_wrong_file_is_one_line_with_its_place() {
    for (text, line) in WRONG {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(line), "{text:?} gives {error:?}");
        assert!(error.len() > "dmce.toml:1:1: ".len() && error.lines().count() == 1, "{error:?}");
    }
}

#[test]
fn a_default_yields_to_the_layout_where_a_choice_would_not() {
    let small = read("[instance]\nlayout = \"32/20/12\"\n").unwrap();
    assert_eq!(small.daemon.pool_object_bytes, Bytes(4096));
    let os64 = read("[instance]\nlayout = \"os64\"\n").unwrap();
    assert_eq!(os64.instance.layout, AddrLayout::OS64);
    assert_eq!(os64.limits.blocks, 4095);
    let error = read("[instance]\nlayout = \"32/20/12\"\n[daemon]\npool_object_bytes = 8192\n");
    assert_eq!(
        error.unwrap_err(),
        "dmce.toml:4:21: pool_object_bytes: 8KiB is more than a block of layout 32/20/12, 4KiB"
    );
}

#[test]
fn a_layout_that_is_set_later_makes_smaller_what_does_not_fit_it() {
    let mut config = read("[limits]\nblocks = 5000\n").unwrap();
    config.set_layout("24/24/16".parse().unwrap());
    assert_eq!((config.limits.blocks, config.daemon.pool_object_bytes), (5000, Bytes(64 << 10)));
    config.set_layout(AddrLayout::OS64);
    assert_eq!(config.limits.blocks, 4095);
    config.validate().unwrap();
}

#[test]
fn a_user_with_limits_of_their_own_has_exactly_those() {
    let text = "[quota]\nbytes = \"1GiB\"\nsessions = 4\n[quota.uid.7]\nsessions = 9\n";
    let quota = read(text).unwrap().quota;
    assert_eq!(quota.of(8).bytes, Some(Bytes::gib(1)));
    assert_eq!(quota.of(7), Quota { sessions: Some(9), ..Quota::default() });
    assert_eq!(Config::default().quota.of(0), Quota::default());
}

#[test]
fn the_environment_outweighs_the_file() {
    let text = "[daemon]\ncapacity = \"1GiB\"\nhuge_pages = true\n";
    let config = read_with(
        text,
        &[
            ("DMCE_DAEMON_CAPACITY", "6GiB"),
            ("DMCE_DAEMON_MARGIN", "1048576"),
            ("DMCE_DAEMON_HUGE_PAGES", "false"),
            ("DMCE_INSTANCE_NAME", "7"),
            ("DMCE_BROKER_SOCKET_MODE", "660"),
            ("DMCE_LIMITS_SESSIONS", "17"),
            ("DMCE_SOCKET", "/not/ours"),
        ],
    )
    .unwrap();
    assert_eq!(config.daemon.capacity, Bytes::gib(6));
    assert_eq!(config.daemon.margin, Bytes::mib(1));
    assert!(!config.daemon.huge_pages);
    assert_eq!(config.instance.name, Some(Instance::new("7").unwrap()));
    assert_eq!(config.broker.socket_mode, 0o660);
    assert_eq!(config.limits.sessions, 17);
}

#[test]
fn an_empty_variable_is_as_one_that_is_not_set() {
    for (section, key, _) in crate::environment::KEYS {
        let name = format!("DMCE_{section}_{key}").to_ascii_uppercase();
        assert_eq!(read_with("", &[(&name, "")]), Ok(Config::default()), "{name}");
    }
    let file = "[daemon]\ncapacity = \"1GiB\"\n";
    assert_eq!(read_with(file, &[("DMCE_DAEMON_CAPACITY", "")]), read(file));
    let error = read_with("", &[("DMCE_DAEMON_CAPCITY", "")]).unwrap_err();
    assert!(error.contains("[daemon] has no key capcity"), "{error}");
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value, line) in [
        (
            "DMCE_LIMITS_SESSIONS",
            "many",
            "environment variable DMCE_LIMITS_SESSIONS: invalid type: string \"many\", \
             expected u32",
        ),
        (
            "DMCE_LIMITS_DAEMONS",
            "0",
            "environment variable DMCE_LIMITS_DAEMONS: daemons: 0 is not between 1 and 256",
        ),
        (
            "DMCE_BROKER_PLACEMENT",
            "nearest",
            "environment variable DMCE_BROKER_PLACEMENT: unknown variant `nearest`, expected one \
             of `round-robin`, `least-used`, `power-of-two`, `weighted`",
        ),
        (
            "DMCE_QUOTA_REQUESTS_BURST",
            "10",
            "environment variable DMCE_QUOTA_REQUESTS_BURST: requests_burst: without \
             requests_per_s it has no effect",
        ),
    ] {
        assert_eq!(read_with("[limits]\ndaemons = 4\n", &[(name, value)]).unwrap_err(), line);
    }
}

#[test]
fn a_variable_that_begins_like_a_section_and_sets_no_key_is_refused() {
    for (name, line) in [
        (
            "DMCE_DAEMON_CAPACTIY",
            "environment variable DMCE_DAEMON_CAPACTIY: [daemon] has no key capactiy, only \
             capacity, pool_objects, pool_object_bytes, huge_pages, margin, check_ms",
        ),
        ("DMCE_INSTANCE_", "environment variable DMCE_INSTANCE_: [instance] has no key , only "),
        ("DMCE_BROKER_sense_ms", "environment variable DMCE_BROKER_sense_ms: [broker] has no key"),
        (
            "DMCE_QUOTA_UID_1000_BYTES",
            "environment variable DMCE_QUOTA_UID_1000_BYTES: [quota.uid.N] is for the file alone",
        ),
        (
            "DMCE_POLICY_ALIGN",
            "environment variable DMCE_POLICY_ALIGN: [[policy]] is for the file alone",
        ),
        ("DMCE_WEIGHT_1", "environment variable DMCE_WEIGHT_1: [weight] is for the file alone"),
    ] {
        let error = read_with("", &[("DMCE_BROKER_IDLE_S", "5"), (name, "1")]).expect_err(name);
        assert!(error.starts_with(line), "{error}");
    }
}

#[test]
fn variables_with_other_readers_are_left_alone() {
    let others = ["DMCE_SOCKET", "DMCE_LOG", "DMCE_CHECK", "DMCE_MESSAGE_PATH", "DMCE_BROKERS"];
    let config = read_with("", &others.map(|name| (name, "/x")));
    assert_eq!(config, Ok(Config::default()));
    assert_eq!(read_with("", &[("PATH", "/bin"), ("dmce_broker_x", "1")]), Ok(Config::default()));
}

#[test]
fn a_change_after_loading_is_checked_by_the_same_rules() {
    let mut config = Config::default();
    assert!(config.validate().is_ok());
    config.daemon.capacity = Bytes(4097);
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "daemon.capacity: 4097 is no multiple of 4KiB"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Some(Path::new("/nonexistent/dmce.toml"))).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/dmce.toml: cannot be read: No such file"), "{error}");
}
