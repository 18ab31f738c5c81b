// dmce::vector<T>: a vector in the memory of a session.
#ifndef LIBDMCE_VECTOR_HPP
#define LIBDMCE_VECTOR_HPP

#include "error.hpp"
#include "mapped_storage.hpp"
#include "ptr.hpp"
#include "session.hpp"
#include "windowed_storage.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace dmce {

// What both kinds of vectors can do. Sizes, indices and differences have 64 bits in programs of
// both widths. It can be moved and not copied.
//
// FLUSHING, where memory has several copies. Elements that are stored reach the other copies at
// flush(), when a window is given up, when the vector grows, and at the destructor, which swallows
// errors. Until then they go with the daemon that holds the copy, if it loses its memory. What the
// vector has mapped is pinned too: a daemon is not drained of it, but of what windows have let go.
// Nobody knows which elements a plain pointer has changed, so to flush a vector that is mapped
// whole takes as long as to copy all of it to each other copy.
//
// ITERATORS. Growing, shrink_to_fit, move and swap invalidate iterators, references and pointers,
// as does flush(); insert and erase those behind them. (Of a windowed_vector an iterator is an
// index with the vector's place: it stays valid as long as the vector stays where it is.)
//
// EXCEPTIONS. A call that throws leaves the elements as they were, but for DMCE_E_LOST, where
// memory was lost and with it what was in it, for insert and erase not at the end, which may leave
// other elements there, and for assign, which may leave none.
//
// THREADS. As std::vector; but reading a windowed_vector moves windows, so of that only one thread
// at a time may call anything.
//
// ALIASING. Windows, mapped ranges and dmce_read of the same elements see each other's stores at
// once. push_back and append of the vector's own elements are fine, and insert of one of them; a
// range to insert or assign is of another's.
template <class T, class Storage>
class basic_vector {
    static_assert(std::is_trivially_copyable<T>::value, "its bytes have to be its value");
    static_assert(std::is_same<T, std::remove_cv_t<T>>::value, "elements are not const");
    static_assert(alignof(T) <= detail::page_bytes, "no more than a page can be promised");

public:
    using value_type = T;
    using size_type = std::uint64_t;
    using difference_type = std::int64_t;
    using reference = typename Storage::reference;
    using const_reference = typename Storage::const_reference;
    using iterator = typename Storage::iterator;
    using const_iterator = typename Storage::const_iterator;
    using reverse_iterator = std::reverse_iterator<iterator>;
    using const_reverse_iterator = std::reverse_iterator<const_iterator>;

    // An empty one allocates nothing. Where the vector is mapped whole, windows mean nothing.
    explicit basic_vector(const session &session, const windows &windows = {})
        : storage_(session.handle(), windows)
    {
    }

    // So many elements T().
    basic_vector(const session &session, size_type count, const windows &windows = {})
        : basic_vector(session, windows)
    {
        resize(count);
    }

    basic_vector(const session &session, size_type count, const T &value,
                 const windows &windows = {})
        : basic_vector(session, windows)
    {
        resize(count, value);
    }

    basic_vector(const session &session, std::initializer_list<T> values,
                 const windows &windows = {})
        : basic_vector(session, windows)
    {
        append(values.begin(), values.size());
    }

    template <class Iterator,
              class = typename std::iterator_traits<Iterator>::iterator_category>
    basic_vector(const session &session, Iterator first, Iterator last,
                 const windows &windows = {})
        : basic_vector(session, windows)
    {
        insert(cend(), first, last);
    }

    basic_vector(basic_vector &&other) noexcept = default;
    basic_vector &operator=(basic_vector &&other) noexcept = default;
    basic_vector(const basic_vector &) = delete;
    basic_vector &operator=(const basic_vector &) = delete;
    ~basic_vector() = default;

    // Size.

    size_type size() const noexcept { return storage_.size(); }
    size_type capacity() const noexcept { return storage_.capacity(); }
    bool empty() const noexcept { return size() == 0; }
    static constexpr size_type max_size() noexcept { return Storage::count_max; }

    // Gigabytes in one piece are filled with zeros before they are granted, which takes their
    // daemons seconds: options::timeout_ms has to be long enough.
    void reserve(size_type count)
    {
        if (count > capacity())
            storage_.reallocate(room_for(count));
    }

    void shrink_to_fit()
    {
        if (size() == 0)
            storage_.release();
        else if (room_for(size()) < capacity())
            storage_.reallocate(room_for(size()));
    }

    void resize(size_type count) { resize(count, T()); }

    void resize(size_type count, const T &value)
    {
        if (count > size()) {
            const T kept = value;
            grow_to(count);
            storage_.chunks(size(), count - size(), [&](T *data, std::size_t now) {
                std::uninitialized_fill_n(data, now, kept);
            });
        }
        storage_.set_size(count);
    }

    void clear() noexcept { storage_.set_size(0); }

    // Elements.

    reference operator[](size_type index) { return *storage_.at(index); }
    const_reference operator[](size_type index) const { return *storage_.at(index); }

    reference at(size_type index)
    {
        check_range(index, 1);
        return *storage_.at(index);
    }

    const_reference at(size_type index) const
    {
        check_range(index, 1);
        return *storage_.at(index);
    }

    reference front() { return (*this)[0]; }
    const_reference front() const { return (*this)[0]; }
    reference back() { return (*this)[size() - 1]; }
    const_reference back() const { return (*this)[size() - 1]; }

    iterator begin() noexcept { return storage_.at(0); }
    const_iterator begin() const noexcept { return storage_.at(0); }
    const_iterator cbegin() const noexcept { return storage_.at(0); }
    iterator end() noexcept { return storage_.at(size()); }
    const_iterator end() const noexcept { return storage_.at(size()); }
    const_iterator cend() const noexcept { return storage_.at(size()); }
    reverse_iterator rbegin() noexcept { return reverse_iterator(end()); }
    const_reverse_iterator rbegin() const noexcept { return const_reverse_iterator(end()); }
    reverse_iterator rend() noexcept { return reverse_iterator(begin()); }
    const_reverse_iterator rend() const noexcept { return const_reverse_iterator(begin()); }

    void push_back(const T &value)
    {
        if (storage_.push(value))
            return;
        // It may be one of the elements that move.
        const T kept = value;
        grow_by(1);
        storage_.push(kept);
    }

    template <class... Arguments>
    reference emplace_back(Arguments &&...arguments)
    {
        push_back(T(std::forward<Arguments>(arguments)...));
        return back();
    }

    void pop_back() noexcept { storage_.set_size(size() - 1); }

    // Many elements at once, at the speed of memcpy in both widths.

    // Adds elements at the end.
    void append(const T *values, size_type count)
    {
        if (const_iterator own = own_elements(values); own != cend()) {
            append_own(static_cast<size_type>(own - cbegin()), count);
            return;
        }
        grow_by(count);
        copy_in(size(), values, count);
        storage_.set_size(size() + count);
    }

    // Copies elements to a program's own memory.
    void read(size_type first, T *to, size_type count) const
    {
        check_range(first, count);
        storage_.chunks(first, count, [&](const T *data, std::size_t now) {
            to = std::copy_n(data, now, to);
        });
    }

    // Overwrites elements from a program's own memory.
    void write(size_type first, const T *from, size_type count)
    {
        check_range(first, count);
        copy_in(first, from, count);
    }

    // Calls f(T *, std::size_t) for pieces of the range, in order. The pointers hold during the
    // call, in which the vector may be used but neither grow nor be flushed: DMCE_E_BUSY, and so
    // it is if as many calls are nested as there are windows.
    template <class F>
    void for_chunks(size_type first, size_type count, F f)
    {
        check_range(first, count);
        storage_.chunks(first, count, f);
    }

    // The same to read alone: f(const T *, std::size_t).
    template <class F>
    void for_chunks(size_type first, size_type count, F f) const
    {
        check_range(first, count);
        storage_.chunks(first, count, f);
    }

    template <class Iterator>
    void assign(Iterator first, Iterator last)
    {
        clear();
        insert(cend(), first, last);
    }

    iterator insert(const_iterator where, const T &value)
    {
        const T kept = value;
        return insert(where, &kept, &kept + 1);
    }

    // The range is not of this vector.
    template <class Iterator>
    iterator insert(const_iterator where, Iterator first, Iterator last)
    {
        using category = typename std::iterator_traits<Iterator>::iterator_category;
        const auto index = static_cast<size_type>(where - cbegin());
        if constexpr (std::is_base_of<std::forward_iterator_tag, category>::value) {
            insert_counted(index, first, static_cast<size_type>(std::distance(first, last)));
        } else {
            const std::vector<T> all(first, last);
            insert_counted(index, all.begin(), all.size());
        }
        return storage_.at(index);
    }

    iterator erase(const_iterator where) { return erase(where, where + 1); }

    iterator erase(const_iterator first, const_iterator last)
    {
        const auto from = static_cast<size_type>(first - cbegin());
        const auto until = static_cast<size_type>(last - cbegin());
        if (from != until)
            storage_.move(from, until, size() - until);
        storage_.set_size(size() - (until - from));
        return storage_.at(from);
    }

    // The memory.

    // Brings all that was stored to every copy.
    void flush() { storage_.flush(); }

    // Gives the memory back now; destroying it does the same without telling of errors.
    void close()
    {
        storage_.release();
    }

    dmce_addr_t addr() const noexcept { return storage_.addr(); }

    // A pointer to the first element, for other ways to it and for other processes.
    ptr<T> pointer() const noexcept { return ptr<T>(storage_.session(), storage_.addr()); }

    // Bytes of address space that it takes now.
    std::uint64_t mapped_bytes() const noexcept { return storage_.mapped_bytes(); }

    // Where it is mapped whole: the first element.
    template <class S = Storage>
    auto data() noexcept -> decltype(std::declval<S &>().data())
    {
        return storage_.data();
    }

    template <class S = Storage>
    auto data() const noexcept -> const std::remove_pointer_t<decltype(std::declval<S>().data())> *
    {
        return storage_.data();
    }

    void swap(basic_vector &other) noexcept
    {
        std::swap(storage_, other.storage_);
    }

    friend void swap(basic_vector &a, basic_vector &b) noexcept { a.swap(b); }

    friend bool operator==(const basic_vector &a, const basic_vector &b)
    {
        return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
    }

    friend bool operator!=(const basic_vector &a, const basic_vector &b) { return !(a == b); }

private:
    // What an allocation has at least, so that it begins at a page: any T is aligned there.
    static constexpr size_type count_min = (detail::page_bytes + sizeof(T) - 1) / sizeof(T);

    static size_type room_for(size_type count)
    {
        if (count > max_size())
            throw std::length_error("dmce::vector: more elements than max_size()");
        return std::max(count, count_min);
    }

    // Half as much again, where more is needed.
    void grow_to(size_type count)
    {
        if (count <= capacity())
            return;
        const size_type half = capacity() / 2;
        const size_type amortised =
            capacity() > max_size() - half ? max_size() : capacity() + half;
        storage_.reallocate(room_for(std::max(count, amortised)));
    }

    void grow_by(size_type count)
    {
        if (count > max_size() - size())
            throw std::length_error("dmce::vector: more elements than max_size()");
        grow_to(size() + count);
    }

    void check_range(size_type first, size_type count) const
    {
        if (first > size() || count > size() - first)
            throw std::out_of_range("dmce::vector: no such element");
    }

    void copy_in(size_type first, const T *from, size_type count)
    {
        storage_.chunks(first, count, [&](T *data, std::size_t now) {
            std::copy(from, from + now, data);
            from += now;
        });
    }

    // Where in the vector a plain pointer points to; its end if elsewhere.
    const_iterator own_elements(const T *values) const noexcept
    {
        if constexpr (std::is_pointer<const_iterator>::value) {
            const std::less<const T *> is_before;
            if (!is_before(values, cbegin()) && is_before(values, cend()))
                return values;
        }
        // Behind windows there is none but within for_chunks, where growing is refused.
        static_cast<void>(values);
        return cend();
    }

    void append_own(size_type from, size_type count)
    {
        grow_by(count);
        storage_.move(size(), from, count);
        storage_.set_size(size() + count);
    }

    template <class Iterator>
    void insert_counted(size_type index, Iterator first, size_type count)
    {
        if (count == 0)
            return;
        grow_by(count);
        storage_.move(index + count, index, size() - index);
        storage_.chunks(index, count, [&](T *data, std::size_t now) {
            for (T *end = data + now; data != end; ++data, ++first)
                *data = *first;
        });
        storage_.set_size(size() + count);
    }

    Storage storage_;
};

// A vector that is mapped whole: iterators and references are plain pointers and references, and
// access is that of std::vector. It can be no larger than the process can address.
template <class T>
using mapped_vector = basic_vector<T, detail::mapped_storage<T>>;

// A vector of any size through a bounded number of windows. There is no T &: v[i] and *it stand
// for an element, as those of std::vector<bool> do. Write `T x = v[i]` for a value, and
// `for (auto &&x : v)` for a loop that compiles with both kinds. In order it maps window after
// window; for_chunks, read, write and append do most in the least time. Scattered accesses, to
// more than fits into the windows, are calls of dmce_read and dmce_write.
template <class T>
using windowed_vector = basic_vector<T, detail::windowed_storage<T>>;

// The one that suits the width: 64-bit programs map it whole, 32-bit ones see it through windows.
template <class T>
using vector =
    std::conditional_t<(sizeof(void *) >= 8), mapped_vector<T>, windowed_vector<T>>;

} // namespace dmce

#endif
