use super::ObjectName;
use std::{collections::BTreeMap, ops::Deref, sync::Arc};

/// Values by name, as they were at one moment. A clone shares everything, and what changed between
/// two moments is found by comparing pointers.
#[derive(Debug, PartialEq, Eq)]
pub struct Table<T, K = ObjectName>(Arc<BTreeMap<Arc<K>, Arc<T>>>);

/// The keys at which two maps differ, sorted.
pub fn differences<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<&'a K> {
    let mut different = Vec::new();
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    loop {
        let key = match (one.peek(), other.peek()) {
            (None, None) => return different,
            (Some((key, _)), None) | (None, Some((key, _))) => *key,
            (Some((key, _)), Some((other, _))) => (*key).min(*other),
        };
        let pair = (
            one.next_if(|(of, _)| *of == key),
            other.next_if(|(of, _)| *of == key),
        );
        if !matches!(pair, (Some((_, a)), Some((_, b))) if same(a, b)) {
            different.push(key);
        }
    }
}

// === impl Table ===

impl<T, K: Ord + Clone> Table<T, K> {
    /// The keys whose values are not the very same in both, sorted.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a K> {
        if self.is_same(other) {
            return Vec::new();
        }
        let different = differences(&self.0, &other.0, Arc::ptr_eq);
        different.into_iter().map(|key| &**key).collect()
    }

    /// Whether nothing was set between the two.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Puts a value in the place of the one there, which it gives back; `None` removes it.
    pub fn set(&mut self, key: &K, value: Option<Arc<T>>) -> Option<Arc<T>> {
        if value.is_none() && !self.0.contains_key(key) {
            return None;
        }
        let table = Arc::make_mut(&mut self.0);
        match (value, table.get_mut(key)) {
            (None, _) => table.remove(key),
            (Some(value), Some(there)) => Some(std::mem::replace(there, value)),
            (Some(value), None) => table.insert(Arc::new(key.clone()), value),
        }
    }

    /// As [`Table::set`], but a value that is equal to the one there leaves it as it is. Says
    /// whether it did not.
    pub fn settle(&mut self, key: &K, value: Option<T>) -> bool
    where
        T: PartialEq,
    {
        let differs = self.0.get(key).map(|there| &**there) != value.as_ref();
        if differs {
            self.set(key, value.map(Arc::new));
        }
        differs
    }
}

impl<T, K> Clone for Table<T, K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T, K> Default for Table<T, K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T, K> Deref for Table<T, K> {
    type Target = BTreeMap<Arc<K>, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a, T, K> IntoIterator for &'a Table<T, K> {
    type Item = (&'a Arc<K>, &'a Arc<T>);
    type IntoIter = std::collections::btree_map::Iter<'a, Arc<K>, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T, K: Ord> FromIterator<(K, T)> for Table<T, K> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(values: I) -> Self {
        let values = values.into_iter();
        let shared = values.map(|(key, value)| (Arc::new(key), Arc::new(value)));
        Self(Arc::new(shared.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_differ_where_a_value_was_set_anew_came_or_went() {
        let name = |name: &str| ObjectName::new("x", name);
        let values = ["gone", "kept", "settled", "set"].into_iter().enumerate();
        let before: Table<usize> = values.map(|(at, key)| (name(key), at)).collect();
        let mut after = before.clone();
        assert!(!after.settle(&name("settled"), Some(2)));
        assert!(after.is_same(&before));
        assert_eq!(after.differences(&before), Vec::<&ObjectName>::new());
        after.set(&name("gone"), None);
        after.set(&name("new"), Some(Arc::new(4)));
        after.set(&name("set"), Some(Arc::new(3)));
        let expected = ["gone", "new", "set"].map(name);
        let expected: Vec<_> = expected.iter().collect();
        assert_eq!(after.differences(&before), expected);
        assert_eq!(before.differences(&after), expected);
        assert_eq!(*before[&name("gone")], 0);
    }
}
