//! Whose a table is that is made beside `telemetry_data`, and who may do what with it.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::Found;

/// Who may do what, on the table and on columns.
const GRANTS: &str = "SELECT a.privilege_type::TEXT || g.columns, \
         CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee))::TEXT END \
             || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END \
     FROM (SELECT c.relowner, c.relacl AS acl, '' AS columns FROM pg_class AS c \
             WHERE c.oid = to_regclass($1) AND c.relacl IS NOT NULL \
         UNION ALL SELECT c.relowner, t.attacl, ' (' || quote_ident(t.attname) || ')' \
             FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid \
             WHERE c.oid = to_regclass($1) AND t.attacl IS NOT NULL AND NOT t.attisdropped) AS g \
     CROSS JOIN LATERAL aclexplode(g.acl) AS a WHERE a.grantee <> g.relowner";

/// What is made belongs to whoever has `telemetry_data`.
pub(super) async fn give(
    connection: &mut PgConnection,
    found: &Found,
    table: &str,
) -> Result<(), sqlx::Error> {
    if let Some(owner) = &found.owner {
        let give = format!("ALTER TABLE {table} OWNER TO {owner}");
        connection.execute(AssertSqlSafe(give)).await?;
    }
    Ok(())
}

/// Grants on a table what is granted on another one.
pub(super) async fn grant(
    connection: &mut PgConnection,
    table: &str,
    other: &str,
) -> Result<(), sqlx::Error> {
    let granted = sqlx::query(GRANTS).persistent(false).bind(other);
    for row in connection.fetch_all(granted).await? {
        let (what, to): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let grant = format!("GRANT {what} ON {table} TO {to}");
        connection.execute(AssertSqlSafe(grant)).await?;
    }
    Ok(())
}
