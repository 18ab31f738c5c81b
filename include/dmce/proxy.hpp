// What stands for an element that has no C++ reference: reading it and assigning to it do the work.
#ifndef LIBDMCE_PROXY_HPP
#define LIBDMCE_PROXY_HPP

#include <type_traits>
#include <utility>

namespace dmce {
namespace detail {

// Self has `T get() const` and `void set(const T &) const`, and says itself how it is assigned to.
// Like the reference that it stands for it is used where it is made: `auto x = *p` makes a second
// name for the element, `T x = *p` a value.
template <class Self, class T>
class proxy {
public:
    operator T() const { return self().get(); }

    // By value, so that the algorithms can swap what two iterators refer to.
    friend void swap(Self a, Self b)
    {
        const T kept = a.get();
        a.set(b.get());
        b.set(kept);
    }

    friend void swap(Self a, T &b)
    {
        const T kept = a.get();
        a.set(b);
        b = kept;
    }

    friend void swap(T &a, Self b) { swap(b, a); }

// Of mixed operands compilers would warn here, where nobody can do anything about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wfloat-conversion"
#pragma GCC diagnostic ignored "-Wconversion"

// Templates, so that what a proxy is compared with is not converted to T first, as it would not be
// if this were a T.
#define LIBDMCE_COMPARE(op)                                                                        \
    friend bool operator op(const Self &a, const Self &b) { return a.get() op b.get(); }           \
    template <class U, class = std::enable_if_t<!std::is_base_of<proxy, U>::value>>                \
    friend auto operator op(const Self &a, const U &b)                                             \
        ->decltype(static_cast<bool>(std::declval<const T &>() op b))                              \
    {                                                                                              \
        return static_cast<bool>(a.get() op b);                                                    \
    }                                                                                              \
    template <class U, class = std::enable_if_t<!std::is_base_of<proxy, U>::value>>                \
    friend auto operator op(const U &a, const Self &b)                                             \
        ->decltype(static_cast<bool>(a op std::declval<const T &>()))                              \
    {                                                                                              \
        return static_cast<bool>(a op b.get());                                                    \
    }

    LIBDMCE_COMPARE(==)
    LIBDMCE_COMPARE(!=)
    LIBDMCE_COMPARE(<)
    LIBDMCE_COMPARE(>)
    LIBDMCE_COMPARE(<=)
    LIBDMCE_COMPARE(>=)
#undef LIBDMCE_COMPARE

// A read and a write: nobody else may write in between.
#define LIBDMCE_ASSIGN(op)                                                                         \
    template <class U>                                                                             \
    const Self &operator op##=(const U &other) const                                               \
    {                                                                                              \
        self().set(static_cast<T>(self().get() op other));                                         \
        return self();                                                                             \
    }

    LIBDMCE_ASSIGN(+)
    LIBDMCE_ASSIGN(-)
    LIBDMCE_ASSIGN(*)
    LIBDMCE_ASSIGN(/)
    LIBDMCE_ASSIGN(%)
    LIBDMCE_ASSIGN(&)
    LIBDMCE_ASSIGN(|)
    LIBDMCE_ASSIGN(^)
    LIBDMCE_ASSIGN(<<)
    LIBDMCE_ASSIGN(>>)
#undef LIBDMCE_ASSIGN
#pragma GCC diagnostic pop

    const Self &operator++() const { return stepped([](T &value) { ++value; }); }
    const Self &operator--() const { return stepped([](T &value) { --value; }); }

    T operator++(int) const
    {
        const T before = self().get();
        ++*this;
        return before;
    }

    T operator--(int) const
    {
        const T before = self().get();
        --*this;
        return before;
    }

private:
    friend Self;
    proxy() = default;

    const Self &self() const noexcept { return static_cast<const Self &>(*this); }

    template <class Step>
    const Self &stepped(Step step) const
    {
        T value = self().get();
        step(value);
        self().set(value);
        return self();
    }
};

// What operator-> gives where there is no pointer: a copy to look at.
template <class T>
class arrow {
public:
    explicit arrow(const T &value) : value_(value) {}
    const T *operator->() const noexcept { return &value_; }

private:
    T value_;
};

} // namespace detail
} // namespace dmce

#endif
