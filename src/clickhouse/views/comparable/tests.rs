use super::*;

fn columns(columns: &[(&str, &str)]) -> Vec<ColumnType> {
    let columns = columns.iter();
    let columns = columns.map(|(name, r#type)| ColumnType {
        name: (*name).to_owned(),
        r#type: (*r#type).to_owned(),
    });
    columns.collect()
}

/// For a view of the events whose target has these columns and this engine, sorted by `key`.
fn of(select: &str, held: &[(&str, &str)], engine: &str, key: &str) -> Result<(), &'static str> {
    let mut target = Table::of_engine("d", "target", engine);
    target.engine = engine.split('(').next().unwrap().to_owned();
    target.partition_key = "date".to_owned();
    target.sorting_key = key.to_owned();
    let held = columns(held);
    let given = held.iter().map(|column| ColumnType {
        name: column.name.clone(),
        r#type: column.bare_type().to_owned(),
    });
    let given: Vec<_> = given.collect();
    let computed = [("yesterday_ts", "server_ts - 1"), ("fresh", "now()")];
    let computed = computed.map(|(name, expression)| Computed {
        name: name.to_owned(),
        expression: expression.to_owned(),
    });
    let facts = Facts {
        target: &target,
        source_day: None,
        computed: &computed,
        given: &given,
        declared: &given,
        held: &held,
    };
    of_select(select, &facts)
}

const DAY: (&str, &str) = ("date", "Date");

/// With one sum for each day.
fn summing(select: &str) -> Result<(), &'static str> {
    let from = "FROM d.analytics_events";
    let select = format!(
        "SELECT toDate(server_ts) AS date, {}",
        select.replacen("FROM", from, 1)
    );
    of(&select, &[DAY, ("n", "UInt64")], "SummingMergeTree", "date")
}

#[test]
fn counts_and_sums_by_the_sorting_key_can_be_compared() {
    for select in [
        "count() AS n FROM GROUP BY date",
        "count() AS n FROM GROUP BY toDate(server_ts)",
        "count() AS n FROM AS e WHERE (user_id NOT IN ('a, (SELECT', 'b\\'')) AND (size > -1.5) GROUP BY date",
        "count() AS n FROM WHERE `kind` != 'now()' GROUP BY date",
        "count() AS n FROM WHERE yesterday_ts > 5 GROUP BY date",
    ] {
        assert_eq!(summing(select), Ok(()), "{select}");
    }
    let columns = [
        DAY,
        ("kind", "LowCardinality(String)"),
        ("size", "Int64"),
        ("n", "UInt64"),
    ];
    let select = "SELECT toDate(server_ts) AS date, lower(type) AS kind, sumIf(size, a LIKE 'x%') AS size, count() AS n FROM t GROUP BY date, kind";
    assert_eq!(
        of(select, &columns, "SummingMergeTree", "date, kind"),
        Ok(())
    );
    assert_eq!(
        of(select, &columns, "SummingMergeTree((size, n))", "kind"),
        Ok(())
    );
    assert_eq!(
        of(select, &columns, "SummingMergeTree(n)", "date, kind"),
        Err(MERGES)
    );
    let twice = "SELECT toDate(server_ts) AS date, type AS kind, type AS size, count() AS n FROM t GROUP BY date, type, user";
    assert_eq!(
        of(twice, &columns, "SummingMergeTree", "date, kind, size"),
        Err(KEY)
    );
    // Rows of one key would be merged into one.
    assert_eq!(of(select, &columns, "SummingMergeTree", "date"), Err(KEY));
    assert_eq!(
        of(select, &columns, "SummingMergeTree", "date, kind, user"),
        Err(KEY)
    );
    assert_eq!(
        of(select, &columns, "SummingMergeTree", "date, lower(kind)"),
        Err(KEY)
    );
}

#[test]
fn what_a_column_merges_must_be_what_its_aggregate_gives() {
    let merged = |function, r#type| {
        let select =
            format!("SELECT toDate(server_ts) AS date, {function} AS n FROM t GROUP BY date");
        of(
            &select,
            &[DAY, ("n", r#type)],
            "AggregatingMergeTree",
            "date",
        )
    };
    let users = "SimpleAggregateFunction(groupUniqArrayArray, Array(String))";
    assert_eq!(
        merged("count()", "SimpleAggregateFunction(sum, UInt64)"),
        Ok(())
    );
    assert_eq!(
        merged(
            "min(server_ts)",
            "SimpleAggregateFunction(min, DateTime64(3, 'UTC'))"
        ),
        Ok(())
    );
    assert_eq!(merged("groupUniqArrayIf(u, u != '')", users), Ok(()));
    for (function, r#type) in [
        ("count()", "UInt64"),
        ("minIf(a, b)", "SimpleAggregateFunction(min, Int32)"),
        ("max(a)", "SimpleAggregateFunction(anyLast, String)"),
        ("uniqExact(a)", "SimpleAggregateFunction(sum, UInt64)"),
        ("sumDistinct(a)", "SimpleAggregateFunction(sum, UInt64)"),
    ] {
        assert_eq!(merged(function, r#type), Err(MERGES), "{function}");
    }
    for function in [
        "groupUniqArray(2)(u)",
        "length(groupUniqArray(u))",
        "sum(a) + count(b)",
        "max(UTCTimestamp())",
        "sum(DISTINCT a)",
        "count() FILTER (WHERE a)",
        "max(a) OVER (PARTITION BY b)",
    ] {
        assert_eq!(merged(function, users), Err(SELECT), "{function}");
    }
}

#[test]
fn any_other_select_is_not_compared() {
    for select in [
        "count() AS n FROM GROUP BY date HAVING n > 1",
        "count() AS n FROM GROUP BY ALL",
        "count() AS n FROM GROUP BY date WITH ROLLUP",
        "count() AS n FROM GROUP BY GROUPING SETS ((date), ())",
        "count() AS n FROM, d.u GROUP BY date",
        "count() AS n FROM INNER JOIN d.u ON t.a = u.a GROUP BY date",
        "count() AS n FROM ARRAY JOIN a GROUP BY date",
        "count() AS n FROM FINAL GROUP BY date",
        "count() AS n FROM GROUP BY date LIMIT 5",
        "count() AS n FROM GROUP BY date SETTINGS a = 1",
        "count() AS n FROM WHERE a IN (d.staff) GROUP BY date",
        "count() AS n FROM WHERE a IN (SELECT a FROM d.u) GROUP BY date",
        "count() AS n FROM WHERE a IN d.staff GROUP BY date",
        "count() AS n FROM WHERE in(a, d.staff) GROUP BY date",
        "count() AS n FROM WHERE dictHas('d', a) GROUP BY date",
        "count() AS n FROM WHERE a > (SELECT -1) GROUP BY date",
        "count() AS n FROM WHERE server_ts < NOW() GROUP BY date",
        "count() AS n FROM WHERE _part = 'a' GROUP BY date",
        "count() AS n FROM WHERE fresh > server_ts GROUP BY date",
        "count() AS n FROM WHERE arrayExists(x -> x, a) GROUP BY date",
        "count() AS n, 1 + FROM GROUP BY date",
        "*, count() AS n FROM GROUP BY date",
    ] {
        let outcome = summing(select);
        assert!(
            [Err(SELECT), Err(KEY)].contains(&outcome),
            "{select}: {outcome:?}"
        );
    }
    // Each insert gives rows of its own.
    for select in [
        "1 AS n FROM",
        "count() AS n FROM",
        "size AS n FROM GROUP BY date",
        "count() AS n FROM GROUP BY date, user",
    ] {
        assert_eq!(summing(select), Err(KEY), "{select}");
    }
    // It may be zero, and the row is dropped.
    for select in ["sum(a)", "countIf(a)", "count(if(a IS NULL, NULL, 1))"] {
        let select = format!("{select} AS n FROM GROUP BY date");
        assert_eq!(summing(&select), Err(MERGES), "{select}");
    }
    let rows = |select| of(select, &[DAY, ("n", "UInt64")], "MergeTree", "date");
    assert_eq!(
        rows("SELECT toDate(server_ts) AS date, t.n FROM t WHERE n > 1"),
        Ok(())
    );
    for select in [
        "SELECT toDate(server_ts) AS date, count() AS n FROM t GROUP BY date",
        "SELECT toDate(server_ts) AS date, rowNumberInAllBlocks() AS n FROM t",
        "SELECT toDate(server_ts) AS date, arrayJoin(a) AS n FROM t",
        "WITH 1 AS n SELECT toDate(server_ts) AS date, n FROM t",
        "SELECT DISTINCT n, toDate(server_ts) AS date FROM t",
    ] {
        assert_eq!(rows(select), Err(SELECT), "{select}");
    }
}

#[test]
fn a_target_must_have_the_days_of_the_events() {
    let day = |expression: &str| {
        let select = format!("SELECT {expression} AS date, n FROM t");
        of(&select, &[DAY, ("n", "UInt64")], "MergeTree", "n")
    };
    assert_eq!(day("toDate(server_ts)"), Ok(()));
    for other in [
        "toStartOfMonth(server_ts)",
        "toDate(client_ts)",
        "toDate(server_ts, 'Asia/Tokyo')",
        "client_ts AS server_ts, toDate(server_ts)",
    ] {
        assert_eq!(day(other), Err(NO_DAYS), "{other}");
    }
}

#[test]
fn a_target_must_hold_what_the_select_gives() {
    let given = columns(&[DAY, ("users", "Array(String)"), ("kind", "String")]);
    let target = Table::of_engine("d", "target", "MergeTree");
    let of_both = |declared: &[ColumnType], last| {
        let users = "SimpleAggregateFunction(groupUniqArrayArray, Array(String))";
        of_columns(&Facts {
            target: &target,
            source_day: None,
            computed: &[],
            given: &given,
            declared,
            held: &columns(&[DAY, ("users", users), last]),
        })
    };
    let held = |last| of_both(&given, last);
    let narrow = columns(&[DAY, ("users", "Array(String)"), ("kind", "UInt8")]);
    assert_eq!(of_both(&narrow, ("kind", "String")), Err(TYPES));
    assert_eq!(held(("kind", "LowCardinality(String)")), Ok(()));
    assert_eq!(held(("kind", "UInt8")), Err(TYPES));
    assert_eq!(held(("inserted_at", "DateTime")), Err(COLUMNS));
    assert_eq!(held(("n", "Float64")), Err(FLOATS));
    assert_eq!(held(("n", "AggregateFunction(uniq, String)")), Err(STATES));
}

#[test]
fn rows_must_be_dropped_by_whole_days_or_not_at_all() {
    let kept = |clauses: &str| {
        let engine = format!("MergeTree PARTITION BY date ORDER BY date{clauses}");
        kept_days(&Table::of_engine("d", "target", &engine), "date")
    };
    assert_eq!(kept(" SETTINGS a = 1"), Ok(None));
    assert_eq!(
        kept(" TTL date + toIntervalDay(90) SETTINGS a = 1"),
        Ok(Some(90))
    );
    assert_eq!(kept(" TTL date + toIntervalDay(90)"), Ok(Some(90)));
    assert_eq!(kept(" TTL other + toIntervalDay(90)"), Err(TTL));
    assert_eq!(kept(" TTL date + toIntervalMonth(2)"), Err(TTL));
    assert_eq!(kept(" TTL date + toIntervalDay(9) WHERE n = 1"), Err(TTL));
}
