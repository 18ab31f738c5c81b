// Memory with two copies, as programs in C++ store to it by pointer. Driven by a test, which lets a
// daemon go, with all that it holds, between the two commands:
//
//   store      stores in every way, and flushes -> ok
//   check      everything is there by dmce_read, and by the vectors themselves -> ok
#include <libdmce.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "cpp.hpp"

namespace {

using word = std::uint64_t;

constexpr std::size_t many = 40000;
constexpr dmce::windows narrow = {65536, 2};

class memory {
public:
    void store()
    {
        fill(mapped_);
        mapped_.flush();
        fill(windowed_);
        // In the windows that were not given up by themselves.
        windowed_.flush();
        CHECK(windowed_.mapped_bytes() == 0);
        {
            dmce::mapped<word> all(explicit_, many);
            std::copy(model_.begin(), model_.end(), all.begin());
            all.unmap();
        }
        {
            const dmce::mapped<word> all(destroyed_, many);
            std::copy(model_.begin(), model_.end(), all.begin());
        }
        std::copy(model_.begin(), model_.begin() + 100, by_call_);
        // What is moved on growing has been given up where it was, and is not flushed again.
        grown_.append(model_.data(), 1000);
        while (grown_.size() < grown_.capacity())
            grown_.push_back(model_[static_cast<std::size_t>(grown_.size())]);
        grown_.push_back(model_[static_cast<std::size_t>(grown_.size())]);
        grown_.flush();
    }

    void compare() const
    {
        CHECK(stored(mapped_.pointer(), many) == model_);
        CHECK(stored(windowed_.pointer(), many) == model_);
        CHECK(stored(explicit_, many) == model_);
        CHECK(stored(destroyed_, many) == model_);
        const std::vector<word> begin(model_.begin(), model_.begin() + 100);
        CHECK(stored(by_call_, 100) == begin);
        CHECK(std::equal(mapped_.begin(), mapped_.end(), model_.begin(), model_.end()));
        CHECK(std::equal(windowed_.begin(), windowed_.end(), model_.begin(), model_.end()));
        CHECK(grown_.size() > 1000);
        CHECK(std::equal(grown_.begin(), grown_.end(), model_.begin()));
    }

private:
    template <class Vector>
    void fill(Vector &vector)
    {
        for (const word each : model_)
            vector.push_back(each);
        // Read behind windows that can only be read, which then are written.
        std::reverse(vector.begin(), vector.end());
        std::reverse(vector.begin(), vector.end());
    }

    static std::vector<word> stored(dmce::ptr<const word> first, std::size_t count)
    {
        std::vector<word> all(count);
        first.read(all.data(), count);
        return all;
    }

    static std::vector<word> numbers()
    {
        random_numbers random(11);
        std::vector<word> all(many);
        for (word &each : all)
            each = random.next();
        return all;
    }

    dmce::session session_{dmce::options().copies(2)};
    const std::vector<word> model_ = numbers();
    dmce::mapped_vector<word> mapped_{session_};
    dmce::windowed_vector<word> windowed_{session_, narrow};
    dmce::vector<word> grown_{session_};
    dmce::ptr<word> explicit_ = session_.allocate<word>(many);
    dmce::ptr<word> destroyed_ = session_.allocate<word>(many);
    dmce::ptr<word> by_call_ = session_.allocate<word>(100);
};

} // namespace

int main()
{
    try {
        memory memory;
        for (std::string command; std::getline(std::cin, command);) {
            if (command == "store")
                memory.store();
            else
                memory.compare();
            std::cout << "ok" << std::endl;
        }
        return 0;
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
