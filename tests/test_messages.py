"""What behaviour is promised for messages, one sentence a test."""

import psycopg


def test_send_returns_the_id(db: psycopg.Connection, queue: str) -> None:
    assert db.execute("select * from pgmq.send(%s, '{\"a\": 1}')", [queue]).fetchall() == [(1,)]
    assert db.execute("select * from pgmq.send(%s, '{\"a\": 2}')", [queue]).fetchall() == [(2,)]
