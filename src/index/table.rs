use crate::model::ObjectName;
use std::{borrow::Borrow, collections::BTreeMap, ops::Deref, sync::Arc};

/// Values by name, as they were at one moment. A clone shares everything, and what changes between
/// two moments is found by comparing pointers.
#[derive(Debug, PartialEq, Eq)]
pub struct Table<T>(Arc<BTreeMap<Arc<ObjectName>, Arc<T>>>);

// === impl Table ===

impl<T> Table<T> {
    /// The names whose values are not the very same in both, sorted.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a ObjectName> {
        let mut different = Vec::new();
        if Arc::ptr_eq(&self.0, &other.0) {
            return different;
        }
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let name = match (ours.peek(), theirs.peek()) {
                (None, None) => return different,
                (Some((name, _)), None) | (None, Some((name, _))) => *name,
                (Some((name, _)), Some((other, _))) => (*name).min(*other),
            };
            let one = ours.next_if(|(of, _)| *of == name);
            let two = theirs.next_if(|(of, _)| *of == name);
            let same = matches!((one, two), (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b));
            if !same {
                different.push(&**name);
            }
        }
    }

    /// The values of a namespace.
    pub(super) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<T>)> {
        in_namespace(&self.0, namespace).map(|(name, value)| (&**name, value))
    }

    /// Puts a value in the place of the one there, which it gives back, or removes it.
    pub(super) fn set(&mut self, name: &ObjectName, value: Option<Arc<T>>) -> Option<Arc<T>> {
        if value.is_none() && !self.0.contains_key(name) {
            return None;
        }
        let table = Arc::make_mut(&mut self.0);
        match (value, table.get_mut(name)) {
            (None, _) => table.remove(name),
            (Some(value), Some(there)) => Some(std::mem::replace(there, value)),
            (Some(value), None) => table.insert(Arc::new(name.clone()), value),
        }
    }

    /// As `set`, but a value that is equal to the one there leaves it as it is.
    pub(super) fn settle(&mut self, name: &ObjectName, value: Option<T>)
    where
        T: PartialEq,
    {
        if self.0.get(name).map(|there| &**there) != value.as_ref() {
            self.set(name, value.map(Arc::new));
        }
    }
}

/// The entries of a map whose names are of a namespace.
pub(super) fn in_namespace<'a, K, V>(
    map: &'a BTreeMap<K, V>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a K, &'a V)>
where
    K: Borrow<ObjectName> + Ord,
{
    map.range(ObjectName::new(namespace, "")..)
        .take_while(move |(name, _)| (*name).borrow().namespace == namespace)
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Deref for Table<T> {
    type Target = BTreeMap<Arc<ObjectName>, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a, T> IntoIterator for &'a Table<T> {
    type Item = (&'a Arc<ObjectName>, &'a Arc<T>);
    type IntoIter = std::collections::btree_map::Iter<'a, Arc<ObjectName>, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_differ_where_a_value_was_set_anew_came_or_went() {
        let name = |name: &str| ObjectName::new("x", name);
        let mut before = Table::default();
        for (at, key) in ["gone", "kept", "settled", "set"].into_iter().enumerate() {
            before.set(&name(key), Some(Arc::new(at)));
        }
        let mut after = before.clone();
        assert_eq!(after.differences(&before), Vec::<&ObjectName>::new());
        after.set(&name("gone"), None);
        after.set(&name("new"), Some(Arc::new(4)));
        after.set(&name("set"), Some(Arc::new(3)));
        after.settle(&name("settled"), Some(2));
        let differences = ["gone", "new", "set"].map(name);
        assert_eq!(after.differences(&before), differences.iter().collect::<Vec<_>>());
        assert_eq!(before.differences(&after), differences.iter().collect::<Vec<_>>());
    }
}
